"""Loading base models and tokenizers: folders, GGUF, random weights, quantised; and what identifies a base model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models import families
from arcft.models.backend import BackendError, import_backend
from arcft.models.bundled import ASSETS
from arcft.models.families import choose_attention
from arcft.models.fingerprint import base_fingerprint, stored_fingerprint
from arcft.models.gguf_tokenizer import GgufTokenizerError
from arcft.models.load import ModelError, load_model, load_tokenizer, resolve_dtype
from arcft.models.outline import stored_bytes
from arcft.models.source import resolve_path
from tests.support.families import family_config
from tests.support.paths import ARCHITECTURES
from tests.support.small_training import CPU, small_config, small_model, small_tokenizer


def config_of(path: Any, **changes: Any) -> ModelConfig:
    return ModelConfig(name="m", path=str(path), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "saved"
    small_model(seed=3).save_pretrained(target)
    small_tokenizer().save_pretrained(target)
    return target


def test_a_folder_is_loaded_in_the_asked_dtype(folder: Path) -> None:
    model = load_model(config_of(folder), dtype=torch.bfloat16, device=CPU)
    assert (model.dtype, model.device.type, model.training) == (torch.bfloat16, "cpu", False)
    assert model.config._attn_implementation == "arcft_folded"
    for name, weight in small_model(seed=3).state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.bfloat16())
    tokenizer = load_tokenizer(config_of(folder))
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<end>", "w7"]) == [0, 1, 7]


def test_another_tokenizer_can_be_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.glob("tokenizer*"):
        shutil.move(file, other)
    assert len(load_tokenizer(config_of(folder, tokenizer=str(other)))) == 32
    with pytest.raises(ModelError, match=r"model\.tokenizer=/nowhere|model\.path=/nowhere"):
        load_tokenizer(config_of(folder, tokenizer="/nowhere"))


def test_random_weights_depend_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)

    def draw(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return load_model(config_of(tmp_path, init="random", seed=seed), dtype=dtype, device=CPU).lm_head.weight

    torch.manual_seed(1)
    first = draw(0)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "the caller's random numbers were moved"
    assert torch.equal(draw(0), first)
    assert torch.equal(draw(0, torch.bfloat16), first.bfloat16())
    assert not torch.equal(draw(1), first)


def test_the_bundled_model_loads() -> None:
    config = config_of("bundled:tiny", init="random")
    model = load_model(config, dtype=torch.float32, device=CPU)
    tokenizer = load_tokenizer(config)
    assert len(tokenizer) <= model.config.vocab_size < len(tokenizer) + 64
    assert resolve_path("bundled:tiny") == str(ASSETS / "tiny")


def test_weights_from_pickles_are_not_read(folder: Path) -> None:
    torch.save(small_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.path=.*safetensors"):
        load_model(config_of(folder), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "model.path=/nowhere/at/all: there is no such file or folder"),
        ("./missing", "there is no such file or folder"),
        ("weights.gguf", "there is no such file or folder"),
        ("bundled:huge", "model.path=bundled:huge: the bundled models are bundled:tiny"),
        ("some-owner/some-model", "is not a local folder, and as a hub id .* can't be fetched"),
    ],
)
def test_missing_models_are_named(path: str, message: str) -> None:
    for load in (load_tokenizer, lambda config: load_model(config, dtype=torch.float32, device=CPU)):
        with pytest.raises(ModelError, match=message):
            load(config_of(path))


def test_a_folder_without_model_or_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"model.path={tmp_path}: a causal language model can't be loaded"):
        load_model(config_of(tmp_path), dtype=torch.float32, device=CPU)
    with pytest.raises(ModelError, match=f"model.path={tmp_path}: a tokenizer can't be loaded"):
        load_tokenizer(config_of(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=r"is a file; give the folder that holds config\.json"):
        load_model(config_of(tmp_path / "weights.bin"), dtype=torch.float32, device=CPU)


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    weights, words = folder / "model.safetensors", folder / "tokenizer.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    words.write_text(words.read_text()[:100])
    gguf = tmp_path / "weights.gguf"
    write_gguf_tokenizer(gguf, "gpt2", "qwen2", ["a", "b"], [])
    gguf.write_bytes(gguf.read_bytes()[:120])
    for path in (folder, gguf):
        with pytest.raises(ModelError, match=f"model.path={path}: a causal language model can't be loaded"):
            load_model(config_of(path), dtype=torch.float32, device=CPU)
    with pytest.raises(ModelError, match=f"model.path={folder}: a tokenizer can't be loaded"):
        load_tokenizer(config_of(folder))
    with pytest.raises(GgufTokenizerError, match=f"model.path={gguf}: can't be read as a GGUF file"):
        load_tokenizer(config_of(gguf))


def test_remote_code_needs_config_and_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, trust_remote_code=True)
    monkeypatch.delenv("ARCFT_TRUST_REMOTE_CODE", raising=False)
    with pytest.raises(ModelError, match="ARCFT_TRUST_REMOTE_CODE=1"):
        load_model(config, dtype=torch.float32, device=CPU)
    monkeypatch.setenv("ARCFT_TRUST_REMOTE_CODE", "1")
    load_model(config, dtype=torch.float32, device=CPU)


def test_remote_code_is_not_run(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    content["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "evil.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(config_of(folder), dtype=torch.float32, device=CPU)


def test_dtypes_are_resolved() -> None:
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16


def test_attention_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(families, "is_flash_attn_2_available", lambda: True)
    config = ModelConfig(name="small", path=str(ARCHITECTURES / "qwen2"), init="random")
    assert choose_attention(config, half, gpu) == "flash_attention_2"
    assert choose_attention(config, torch.float32, gpu) == "sdpa"
    assert choose_attention(config, half, CPU) == "sdpa"
    assert choose_attention(dataclasses.replace(config, positions="grid"), half, gpu) == "sdpa"
    assert choose_attention(dataclasses.replace(config, attn_implementation="eager"), half, gpu) == "eager"
    monkeypatch.setattr(families, "is_flash_attn_2_available", lambda: False)
    assert choose_attention(config, half, gpu) == "sdpa"


def test_an_architecture_without_sdpa_gets_eager_attention(tmp_path: Path) -> None:
    family_config("bloom").save_pretrained(tmp_path)
    config = ModelConfig(name="bloom", path=str(tmp_path), init="random")
    assert choose_attention(config, torch.float32, CPU) == "eager"
    assert load_model(config, dtype=torch.float32, device=CPU).config._attn_implementation == "eager"


def test_only_files_that_are_loaded_count_as_stored(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    assert stored_bytes(config_of(tmp_path)) == size
    (tmp_path / "model.safetensors").unlink()
    assert stored_bytes(config_of(tmp_path)) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="unsloth may be installed where there is a GPU")
def test_unsloth_is_asked_for_by_name(folder: Path) -> None:
    config = config_of(folder, backend="unsloth")
    with pytest.raises(BackendError, match=r"pip install 'arcft\[unsloth\]'"):
        load_model(config, dtype=torch.float32, device=CPU)
    assert import_backend(config_of(folder)) is None


def test_fingerprints_tell_base_models_apart_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        config = config_of(path, **changes)
        return base_fingerprint(config, load_model(config, dtype=dtype, device=CPU))

    base = fingerprint(folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert fingerprint(moved) == fingerprint(folder, torch.bfloat16) == base
    assert fingerprint(folder, quantization="nf4") == base
    small_model(seed=4).save_pretrained(moved)
    assert fingerprint(moved) != base
    random = [fingerprint(folder, init="random", seed=seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]
    assert base not in random
    assert fingerprint(folder, torch.bfloat16, init="random") == random[0]


def test_the_fingerprint_covers_every_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    small_model(seed=3).save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    base = stored_fingerprint(config_of(folder))
    for shard in shards:
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert stored_fingerprint(config_of(folder)) != base, shard.name
        shard.write_bytes(content)
    assert stored_fingerprint(config_of(folder)) == base


def test_of_large_files_blocks_from_the_first_to_the_last_byte_are_read(folder: Path) -> None:
    """64 blocks of 4 KiB, evenly spaced, and the size; files of up to 8 MiB whole."""
    weights, size = folder / "model.safetensors", 8 * 2**20 + 64
    content = bytearray(number % 251 for number in range(2**16)) * (size // 2**16 + 1)
    del content[size:]

    def fingerprint_with(place: int | None) -> str:
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        weights.write_bytes(changed)
        return stored_fingerprint(config_of(folder))

    base = fingerprint_with(None)
    starts = [number * (size - 4096) // 63 for number in range(64)]
    for place in (0, starts[1], starts[1] + 4095, starts[32], starts[63], size - 1):
        assert fingerprint_with(place) != base, place
    # Between two blocks nothing is read, or large files would take minutes.
    assert fingerprint_with(starts[1] - 1) == base
    weights.write_bytes(content[: 8 * 2**20])
    whole = stored_fingerprint(config_of(folder))
    content[starts[1] - 1] ^= 1
    weights.write_bytes(content[: 8 * 2**20])
    assert stored_fingerprint(config_of(folder)) != whole


def test_fingerprints_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Or no adapter would fit its base model any more. Of a file that is read whole, and of a larger one."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 32, "vocab_size": 50}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert stored_fingerprint(config_of(tmp_path)) == "647a3c5aa1d81a9315a9778f91070ac16fa6f02cb668aa00312dd261e501fff4"
    (tmp_path / "model.safetensors").write_bytes(bytes(range(250)) * 40_000)
    assert stored_fingerprint(config_of(tmp_path)) == "4d7b8d914309f995f7cec850a794e03ee8bcf4333b72f338579a23e4df07c967"


def test_training_does_not_change_the_fingerprint(folder: Path) -> None:
    config = config_of(folder)
    model = load_model(config, dtype=torch.float32, device=CPU)
    before = base_fingerprint(config, model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    model.config.use_cache = False
    model.config.pad_token_id = 3
    assert base_fingerprint(config, model) == before


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_quantised_models_keep_head_and_router(tmp_path: Path, quantization: str) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    small = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_experts": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    mixture = Qwen2MoeConfig(num_key_value_heads=2, decoder_sparse_step=1, **small, **experts)
    Qwen2MoeForCausalLM(mixture).save_pretrained(tmp_path)
    small_model(tie_word_embeddings=False).save_pretrained(tmp_path / "dense")
    quantised = Linear8bitLt if quantization == "int8" else Linear4bit
    for path in (tmp_path, tmp_path / "dense"):
        model = load_model(config_of(path, quantization=quantization), dtype=torch.float32, device=CPU)
        kinds = {name: type(module) for name, module in model.named_modules() if hasattr(module, "weight")}
        assert not issubclass(kinds["lm_head"], quantised)
        assert issubclass(kinds["model.layers.0.self_attn.q_proj"], quantised)
        routers = [kind for name, kind in kinds.items() if name.endswith(("mlp.gate", "shared_expert_gate"))]
        assert not any(issubclass(kind, quantised) for kind in routers)
        assert len(routers) == (2 if path == tmp_path else 0)
    # The pattern for routers leaves the gates of dense layers alone.
    assert issubclass(kinds["model.layers.0.mlp.gate_proj"], quantised)


def test_a_gguf_tokenizer_is_the_original_one(smollm2_gguf: Path) -> None:
    tokenizer = load_tokenizer(config_of(smollm2_gguf))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert len(tokenizer) == 49152
    text = "<|im_start|>user\n0123 45 é☃ don't"
    ids = tokenizer(text)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:8] == ["<|im_start|>", "user", "Ċ", "0", "1", "2", "3", "Ġ"]
    assert tokenizer.decode(ids) == text
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert turn.endswith("<|im_start|>user\nhi<|im_end|>\n")


def write_gguf_tokenizer(path: Path, model: str, pieces: str, tokens: list[str], merges: list[str]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pieces)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt2", "gpt-2"),
        pytest.param("llama3", "llama-bpe", marks=pytest.mark.slow),
        pytest.param("qwen2_5", "qwen2", marks=pytest.mark.slow),
    ],
)
def test_gguf_tokenizers_cut_text_as_the_models_own(
    name: str, pieces: str, tokenizer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    own = json.loads((tokenizer_folder(name) / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in own["merges"]]
    tokens = sorted(own["vocab"], key=own["vocab"].get)
    write_gguf_tokenizer(tmp_path / "t.gguf", "gpt2", pieces, tokens, merges)
    rebuilt = load_tokenizer(config_of(tmp_path / "t.gguf"))
    original = load_tokenizer(config_of(tokenizer_folder(name)))
    for text in (
        "0123456789 12\n\n3 don't  stop",
        "```grid shape: 2x2\n1 01\n2 23\n```",
        "ñò÷û ąć  Été\r\n\n x",
        "a\t b",
    ):
        mine = rebuilt(text, add_special_tokens=False)["input_ids"]
        assert mine == original(text, add_special_tokens=False)["input_ids"], text
        assert rebuilt.decode(mine) == text


def test_unknown_gguf_tokenizers_are_refused(tmp_path: Path) -> None:
    write_gguf_tokenizer(tmp_path / "t.gguf", "gpt2", "viking", ["a", "b"], [])
    with pytest.raises(GgufTokenizerError, match=r"of the kind gpt2/viking.*model\.tokenizer=FOLDER"):
        load_tokenizer(config_of(tmp_path / "t.gguf"))


OUT_OF_MEMORY = """
import resource, sys
import bitsandbytes, psutil, torch
from arcft.config.model import ModelConfig
from arcft.memory import OutOfMemoryError
from arcft.models.load import load_model
config = ModelConfig(name="m", path=sys.argv[1], init=sys.argv[2], quantization=sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 60 * 2**20, resource.RLIM_INFINITY))
try:
    load_model(config, dtype=torch.bfloat16, device=torch.device("cpu"))
except OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("init", "quantization"), [("pretrained", "none"), ("random", "none"), ("pretrained", "nf4")])
def test_out_of_memory_while_loading_is_said_in_words(tmp_path: Path, init: str, quantization: str) -> None:
    small_model(vocab_size=400_000, hidden_size=64).save_pretrained(tmp_path / "big")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path / "big"), init, quantization],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert f"model.path={tmp_path / 'big'}: the model does not fit into memory (" in done.stdout
    assert "a machine with more memory" in done.stdout
    assert ("model.quantization=nf4" in done.stdout) == ((init, quantization) == ("pretrained", "none"))
