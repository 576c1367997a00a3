"""A base model and its tokenizer, from a hub id, a folder, a GGUF file or the package's own assets.

Weights are read from safetensors or GGUF only, never from pickles. Random weights are drawn on the CPU in float32 from
the config's own seed, so that they are the same base model on every device and in every dtype.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from arcft.config.model import ModelConfig
from arcft.models.backend import import_backend
from arcft.models.bundled import BUNDLED, WEIGHTS_FILE, bundled_folder, check_tokenizer, check_weights
from arcft.models.errors import ModelError
from arcft.models.folded_attention import use_folded_attention
from arcft.models.gguf_tokenizer import load_gguf_tokenizer
from arcft.models.positional_kernels import set_positional_kernels

_HUB_SECONDS = 5
_READ_WHOLE = 8 * 2**20
_BLOCKS = 64
_BLOCK_BYTES = 4096

# Entries of a model's config that say how it is used, not what it computes.
_VOLATILE = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "name_or_path",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


def resolve_path(path: str) -> str:
    """A `bundled:NAME` as its folder in the package, a local folder or GGUF file as its absolute path, and anything
    else unchanged: a hub id. Raises ModelError for a bundled name or a local path that does not exist."""
    if path.startswith(BUNDLED):
        return str(bundled_folder(path))
    local = Path(path).expanduser()
    if local.exists():
        if local.is_file() and local.suffix != ".gguf":
            raise ModelError(f"model.path={path} is a file; give the folder that holds config.json, or a .gguf file")
        return str(local.resolve())
    # A hub id is `name` or `owner/name`.
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or path.endswith(".gguf"):
        raise ModelError(f"model.path={path}: there is no such file or folder (from {Path.cwd()})")
    return path


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of forward and backward: `auto` is bfloat16 on GPUs that have it, else float16, and float32 on CPU."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type != "cuda":
        return torch.float32
    # Before compute capability 8 bfloat16 is emulated, and slow.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer at `config.tokenizer`, or else at `config.path`; raises ModelError where there is none."""
    key, path = ("model.tokenizer", config.tokenizer) if config.tokenizer else ("model.path", _path(config))
    source = resolve_path(path)
    # Random weights belong to no tokenizer in particular.
    if path.startswith(BUNDLED) and config.init == "pretrained":
        check_tokenizer(path)
    if source.endswith(".gguf"):
        return load_gguf_tokenizer(Path(source))
    trust = _trusts_code(config)
    loader = PreTrainedTokenizerFast if _is_generic(Path(source)) else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(source, trust_remote_code=trust, **_hub_options(source))
    # The tokenizers library has no exceptions of its own: it raises plain ones.
    except Exception as error:
        raise ModelError(_not_loaded(key, path, "a tokenizer", error)) from error
    # Spaces before punctuation belong to the text here.
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _is_generic(folder: Path) -> bool:
    """Whether the tokenizer in `folder` was saved as no model's own class, with all its rules in tokenizer.json.

    Beside a config.json of some types (Qwen2), AutoTokenizer would put the type's rules in their place.
    """
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    try:
        name = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
    except (ValueError, AttributeError):
        return False  # told by whoever loads it
    return name in ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    autocast: torch.dtype | None = None,
    max_seq_length: int | None = None,
) -> PreTrainedModel:
    """The base model with its weights in `dtype` on `device`, in evaluation mode.

    For training all weights, pass float32 and leave the arithmetic to autocast, in the dtype `autocast`; frozen weights
    under an adapter may be in the dtype of the arithmetic. `max_seq_length` matters to unsloth only. On a CPU, sdpa
    attention in bfloat16 is computed by models/folded_attention.py. Raises ModelError.
    """
    if config.backend == "unsloth":
        return _load_unsloth(config, dtype, max_seq_length)
    try:
        if config.init == "random":
            model = draw_random_model(config).to(device=device, dtype=dtype)  # type: ignore[call-arg]
        else:
            model = _load_pretrained(config, dtype, device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, struct.error) as error:
        raise ModelError(_not_loaded("model.path", _path(config), "a causal language model", error)) from error
    if device.type == "cpu" and torch.bfloat16 in (dtype, autocast):
        use_folded_attention(model)
    return model.eval()


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The config.json at `config.path`, or what a GGUF file says in its place; errors are transformers' own."""
    source = resolve_path(_path(config))
    if source.endswith(".gguf"):
        return AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
    return AutoConfig.from_pretrained(source, trust_remote_code=_trusts_code(config), **_hub_options(source))


def draw_random_model(config: ModelConfig) -> PreTrainedModel:
    """A model of the architecture at `config.path`, weights drawn from `config.seed`; float32 on the CPU.

    Where its config asks for positional kernels, these come on top."""
    architecture = load_architecture(config)
    trust = _trusts_code(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            architecture, attn_implementation=config.attn_implementation, dtype=torch.float32, trust_remote_code=trust
        )
    set_positional_kernels(model)
    return model


def architecture_values(config: PretrainedConfig) -> dict[str, Any]:
    """The entries of a model's config that say what it computes: equal for models of one architecture."""
    # Without what a class says by default, which grows with every version of transformers.
    return dict(_without_volatile(config.to_diff_dict()))


def base_fingerprint(config: ModelConfig, model: PreTrainedModel) -> str:
    """sha256 (hexadecimal) over the architecture and a digest of the base weights; the same for every device, dtype
    and quantisation that they are loaded in, and whether or not `model` carries an adapter or was trained since.

    Weight files are digested whole up to 8 MiB, and by size and 64 evenly spread blocks of 4 KiB each above, which
    takes milliseconds for files of any size; random weights by drawing them again. Raises ModelError.
    """
    return _fingerprint(config, model.config)


def stored_fingerprint(config: ModelConfig) -> str:
    """`base_fingerprint` of a model that is not loaded; raises ModelError."""
    try:
        architecture = load_architecture(config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(_not_loaded("model.path", _path(config), "a config.json", error)) from error
    return _fingerprint(config, architecture)


def _fingerprint(config: ModelConfig, architecture: PretrainedConfig) -> str:
    digest = hashlib.sha256(json.dumps(architecture_values(architecture), sort_keys=True, default=str).encode())
    if config.init == "random":
        for name, tensor in draw_random_model(config).state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    else:
        for path in _weight_files(resolve_path(str(config.path))):
            _add_file(digest, path)
    return digest.hexdigest()


def _load_pretrained(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    source = resolve_path(_path(config))
    if _path(config).startswith(BUNDLED):
        check_weights(_path(config))
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": config.attn_implementation,
        "device_map": {"": device},
    }
    if source.endswith(".gguf"):
        return _load_gguf(Path(source), options)
    if config.quantization != "none":
        options["quantization_config"] = _quantization(config.quantization, dtype)
    # A bar is for what takes long.
    with _no_progress_bar() if _path(config).startswith(BUNDLED) else contextlib.nullcontext():
        model = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, trust_remote_code=_trusts_code(config), **options, **_hub_options(source)
        )
    if config.quantization == "nf4":
        _keep_gradients(model)
    return model


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    was_shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            enable_progress_bar()


def _keep_gradients(model: PreTrainedModel) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights at the first forward pass in evaluation mode, as it does on
    CPUs with AVX512-BF16: the packed product has no gradient, so an adapter would silently stop learning."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _load_gguf(path: Path, options: dict[str, Any]) -> PreTrainedModel:
    # Newer transformers keeps the file's blocks where it has a kernel for them; older releases always unpack, and
    # have no such class. Only a plain dense model can be saved again.
    if "GgufConfig" in dir(transformers):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)


def _quantization(name: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    # A mixture of experts is routed by its `gate`, and errors in the logits hurt most: these stay as they are.
    # Names match by their end: the dot leaves the large `gate_proj` of dense layers to be quantised.
    kept = ["lm_head", ".gate", ".shared_expert_gate"]
    if name == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def _load_unsloth(config: ModelConfig, dtype: torch.dtype, max_seq_length: int | None) -> PreTrainedModel:
    unsloth: Any = import_backend(config)
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        model_name=resolve_path(_path(config)),
        max_seq_length=max_seq_length,
        dtype=dtype,
        load_in_4bit=config.quantization == "nf4",
        load_in_8bit=config.quantization == "int8",
        trust_remote_code=_trusts_code(config),
    )
    return model


def _path(config: ModelConfig) -> str:
    if not config.path:
        raise ModelError("model.path is not set: give a hub id, a folder or a .gguf file")
    return config.path


def _hub_options(source: str) -> dict[str, Any]:
    """What to load `source`, a local folder or a hub id, with: without a network, only what was downloaded before."""
    return {} if Path(source).exists() or _can_reach_hub() else {"local_files_only": True}


@functools.cache
def _can_reach_hub() -> bool:
    """Asked once, as huggingface_hub would try each file for half a minute, with a warning at each attempt."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_SECONDS)
    # Whatever the hub answers, it is there.
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


def _trusts_code(config: ModelConfig) -> bool:
    if config.trust_remote_code and os.environ.get("ARCFT_TRUST_REMOTE_CODE") != "1":
        raise ModelError(
            f"model.trust_remote_code=true runs Python code from {config.path}: if you have read that code and trust "
            "it, also set the environment variable ARCFT_TRUST_REMOTE_CODE=1"
        )
    return config.trust_remote_code


def _not_loaded(key: str, path: str, what: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines)[:400]
    if Path(resolve_path(path)).exists():
        return f"{key}={path}: {what} can't be loaded from there ({reason})"
    return (
        f"{key}={path} is not a local folder, and as a hub id {what} can't be fetched under that name; check the name "
        f"and the network, or give the path of a downloaded folder ({reason})"
    )


def _without_volatile(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_volatile(entry) for name, entry in value.items() if name not in _VOLATILE}


def _weight_files(source: str) -> list[Path]:
    if source.endswith(".gguf"):
        return [Path(source)]
    single, index = WEIGHTS_FILE, "model.safetensors.index.json"
    for name in (single, index):
        # Finds a file in a folder or in the hub's cache; None where there is none.
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **_hub_options(source))
        if found is None:
            continue
        if name == single:
            return [Path(found)]
        shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
        return [Path(str(cached_file(source, shard, **_hub_options(source)))) for shard in shards]
    raise ModelError(f"model.path={source}: it holds no {single}; weights in other formats are not read")


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}".encode())
    if size <= _READ_WHOLE:
        digest.update(path.read_bytes())
        return
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek(number * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
