"""Adapters: seeded, saved and loaded to the bit, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FalconConfig, FalconForCausalLM

from arcft.config.lora import INITIAL_WEIGHTS
from arcft.models.lora import (
    LoraError,
    apply_lora,
    load_adapter,
    load_adapter_weights,
    save_adapter,
    trainable_parameters,
)
from tests.support.small_training import TRAIN_MODULES, VOCABULARY, adapted_model, lora_config, small_model

IDS = torch.arange(2, 12).unsqueeze(0)


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shaken(model: peft.PeftModel) -> peft.PeftModel:
    """With every trainable weight moved, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_a_fresh_adapter_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights(adapted_model(seed=0))
    after = torch.rand(1)
    torch.manual_seed(2)
    again, other = weights(adapted_model(seed=0)), weights(adapted_model(seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    different = [name for name in first if not torch.equal(first[name], other[name])]
    assert different
    assert all("lora_A" in name for name in different)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "the caller's random numbers were moved"


@pytest.mark.parametrize("initial", INITIAL_WEIGHTS)
def test_every_initialisation_that_the_config_takes(initial: bool | str) -> None:
    assert not list(lora_config(init_lora_weights=initial).problems())
    changed = float((logits(adapted_model(init_lora_weights=initial)) - logits(small_model())).abs().max())
    # Only two random factors move the model. (PiSSA and OLoRA take what they begin with off the base.)
    assert (changed > 1e-3) == (initial is False)


def test_a_fresh_adapter_changes_nothing_yet() -> None:
    assert torch.equal(logits(adapted_model()), logits(small_model()))


def test_what_is_trained() -> None:
    bare = apply_lora(small_model(), lora_config(r=4), [], seed=0)
    # Per layer: four attention projections 32x32, and gate, up (32 to 64) and down (64 to 32).
    per_layer = 4 * (4 * (32 + 32)) + 3 * (4 * (32 + 64))
    assert trainable_parameters(bare) == 2 * per_layer
    assert all("lora_" in name for name in weights(bare))
    # The tied embedding counts once, the five norms have 32 weights each.
    assert trainable_parameters(adapted_model()) == 2 * per_layer + VOCABULARY * 32 + 5 * 32
    assert (
        trainable_parameters(apply_lora(small_model(), lora_config(target_modules=["q_proj"]), [], seed=0)) == 2 * 256
    )


def test_tied_embeddings_stay_tied() -> None:
    model = shaken(adapted_model())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight
    assert head.weight.requires_grad


def test_untied_embeddings_are_trained_apart() -> None:
    model = apply_lora(small_model(tie_word_embeddings=False), lora_config(), TRAIN_MODULES, seed=0)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert sum(name.endswith("modules_to_save.default.weight") for name in weights(model)) == 2 + 5


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_saved_and_loaded_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = shaken(adapted_model(**changes))
    save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    random = torch.random.get_rng_state()
    trainable = load_adapter(small_model(), tmp_path, trainable=True)
    assert torch.equal(torch.random.get_rng_state(), random)
    mine, loaded = weights(model), weights(trainable)
    assert mine.keys() == loaded.keys()
    assert all(torch.equal(mine[name], loaded[name]) for name in mine)
    frozen = load_adapter(small_model(), tmp_path, trainable=False)
    assert not weights(frozen)
    assert not frozen.training
    assert torch.equal(logits(frozen), logits(trainable))
    assert torch.equal(logits(frozen), logits(model))


def test_adapters_are_float32_for_training_and_the_bases_dtype_for_use(tmp_path: Path) -> None:
    model = apply_lora(small_model().bfloat16(), lora_config(), TRAIN_MODULES, seed=0)
    assert {p.dtype for p in weights(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    save_adapter(shaken(model), tmp_path)
    again = weights(load_adapter(small_model().bfloat16(), tmp_path, trainable=True))
    assert all(torch.equal(weight, again[name]) for name, weight in weights(model).items())
    frozen = load_adapter(small_model().bfloat16(), tmp_path, trainable=False)
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert logits(frozen).dtype == torch.bfloat16


@pytest.mark.slow
def test_the_saved_files_are_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.support.small_training import adapted_model;"
        "from arcft.models.lora import save_adapter; save_adapter(adapted_model(), Path(sys.argv[1]))"
    )
    contents = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_unknown_modules_are_named() -> None:
    with pytest.raises(LoraError, match=r"lora.target_modules: the model has no module query; .*q_proj"):
        apply_lora(small_model(), lora_config(target_modules=["q_proj", "query"]), [], seed=0)
    with pytest.raises(LoraError, match=r"model.train_modules: the model has no module wte; .*embed_tokens"):
        apply_lora(small_model(), lora_config(), ["wte"], seed=0)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted_model(), tmp_path)
    for changes, message in [
        ({"num_hidden_layers": 3}, "lacks .*layers.2|does not fit"),
        ({"num_hidden_layers": 1}, "does not fit this base model"),
        ({"intermediate_size": 96}, r"has shape \(4, 64\), this model needs \(4, 96\)"),
    ]:
        with pytest.raises(LoraError, match=message):
            load_adapter(small_model(**changes), tmp_path, trainable=False)
    with pytest.raises(LoraError, match=r"lacks|has the extra weight"):
        load_adapter_weights(apply_lora(small_model(), lora_config(), [], seed=0), tmp_path)


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted_model(), folder)
    return folder


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    save_adapter(adapted_model(), tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    content, text = load_file(file), settings.read_text()
    name = sorted(content)[0]
    save_file({key: value for key, value in content.items() if key != name}, file)
    with pytest.raises(LoraError, match=f"lacks {name}"):
        load_adapter(small_model(), tmp_path, trainable=True)
    file.write_bytes(b"\x00" * 40)
    with pytest.raises(LoraError, match=r"adapter_model\.safetensors: can't be read"):
        load_adapter(small_model(), tmp_path, trainable=True)
    for bad in ["{", "\xff", "[" * 100_000, text[:-2]]:
        settings.write_text(bad, encoding="latin-1")
        with pytest.raises(LoraError, match=r"adapter_config\.json: can't be read"):
            load_adapter(small_model(), tmp_path, trainable=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "is not a plain LoRA adapter: it has no peft_type LORA"),
        ({"peft_type": None}, "is not a plain LoRA adapter: it has no peft_type LORA"),
        ({"megatron_config": {}, "megatron_core": "os"}, 'is not a plain LoRA adapter: megatron_core="os"'),
        ({"megatron_config": {"a": 1}}, 'is not a plain LoRA adapter: megatron_config={"a": 1}'),
        ({"auto_mapping": {"parent_library": "os"}}, "is not a plain LoRA adapter: auto_mapping="),
        ({"eva_config": {"rho": 2.0}}, "is not a plain LoRA adapter: eva_config="),
        ({"corda_config": {"cache_file": "/tmp/x"}}, "is not a plain LoRA adapter: corda_config="),
        ({"runtime_config": {"ephemeral_gpu_offload": True}}, "is not a plain LoRA adapter: runtime_config="),
        ({"loftq_config": {"loftq_bits": 4}}, "is not a plain LoRA adapter: loftq_config="),
        ({"alora_invocation_tokens": [1]}, r"is not a plain LoRA adapter: alora_invocation_tokens=\[1\]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern={.* is not a value that a LoRA adapter can have"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern=.* is not a value that a LoRA adapter can have"),
        ({"not_yet_invented": "os"}, 'is not a plain LoRA adapter: not_yet_invented="os"'),
        ({"r": "x"}, 'r="x" is not a value that a LoRA adapter can have'),
        ({"r": 0}, "r=0 is not a value"),
        ({"r": True}, "r=true is not a value"),
        ({"lora_alpha": None}, "lora_alpha=null is not a value"),
        ({"lora_dropout": []}, r"lora_dropout=\[\] is not a value"),
        ({"target_modules": None}, "target_modules=null is not a value"),
        ({"target_modules": [3]}, r"target_modules=\[3\] is not a value"),
        ({"target_modules": "("}, "the adapter does not fit this base model: missing \\)"),
        ({"modules_to_save": "lm_head"}, 'modules_to_save="lm_head" is not a value'),
        ({"use_dora": 1}, "use_dora=1 is not a value"),
        ({"task_type": "SEQ_CLS"}, 'task_type="SEQ_CLS" is not a value'),
        ({"init_lora_weights": "loftq"}, 'init_lora_weights="loftq" is not a value'),
        ({"init_lora_weights": ["eva"]}, r'init_lora_weights=\["eva"\] is not a value'),
    ],
)
def test_what_is_no_plain_adapter_is_refused_by_its_file(
    plain_adapter: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(plain_adapter, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    with pytest.raises(LoraError, match=rf"^{settings}: {message}"):
        load_adapter(small_model(), tmp_path, trainable=True)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"LORA"', "{}"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    settings = tmp_path / "adapter_config.json"
    settings.write_text(content)
    with pytest.raises(LoraError, match=rf"^{settings}: is not a plain LoRA adapter: it has no peft_type LORA$"):
        load_adapter(small_model(), tmp_path, trainable=True)


def test_the_classes_that_unsloth_names_are_not_saved(tmp_path: Path) -> None:
    model = adapted_model()
    model.peft_config["default"].auto_mapping = {"parent_library": "transformers", "unsloth_fixed": True}
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"] is None
    load_adapter(small_model(), tmp_path, trainable=True)


def test_layers_of_an_outline_are_told_apart_without_values() -> None:
    """Falcon's linear layers are a class of its own."""
    config = FalconConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=32)
    with torch.device("meta"):
        model = FalconForCausalLM(config)
        adapted = apply_lora(model, lora_config(target_modules="all-linear"), [], seed=0)
    assert trainable_parameters(adapted) > 0
