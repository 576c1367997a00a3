"""LoRA adapters: creating, saving and loading them in PEFT's format.

Trainable weights are always float32 (an optimizer's small updates vanish in bfloat16); frozen weights keep the dtype
they were loaded in. So a trainable model with 16-bit base weights needs autocast; a frozen one has the base's dtype
throughout and does not.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from arcft.config.lora import LoraConfig
from arcft.models.adapter_config import (
    CONFIG_FILE,
    LoraError,
    parse_adapter_config,
    read_adapter_config,
    sort_names,
)
from arcft.models.families import READ_BY_WEIGHT
from arcft.models.sharding import slice_like
from arcft.models.vocabulary import PrunedVocabulary, pruned_vocabulary, refuse_unsavable

WEIGHTS_FILE = "adapter_model.safetensors"


def apply_lora(
    model: PreTrainedModel,
    config: LoraConfig,
    train_modules: Sequence[str],
    *,
    seed: int,
    backend: Literal["transformers", "unsloth"] = "transformers",
) -> peft.PeftModel:
    """Freeze `model` and add a new adapter.

    Args:
        model: Modified in place.
        config: Rank, scale, target modules and so on.
        train_modules: Names of modules that are trained and saved whole. An embedding that is tied to the head stays
            tied.
        seed: Seeds the initial weights; the global random state is unchanged.
        backend: The library that creates the adapter.

    Raise LoraError for modules that the model does not have.
    """
    _check_names(model, "model.train_modules", train_modules)
    if not isinstance(config.target_modules, str):
        _check_names(model, "lora.target_modules", config.target_modules or ())
    if backend == "unsloth":
        return _apply_with_unsloth(model, config, train_modules, seed)
    peft_config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        use_dora=bool(config.use_dora),
        ensure_weight_tying=bool(train_modules) and _is_tied(model),
        exclude_modules=_not_adaptable(model) if config.target_modules == "all-linear" else None,
        **_options(config, train_modules),
    )
    with _seeded(seed), _no_false_warnings():
        try:
            adapted = peft.get_peft_model(model, peft_config)
        except (ValueError, TypeError, RuntimeError) as error:
            keys = ", ".join(f"lora.{name}={getattr(config, name)}" for name in ("target_modules", "init_lora_weights"))
            raise LoraError(f"{keys}: {error}") from error
    _check_layers(adapted)
    refuse_unsavable(adapted, peft_config)
    # What is trained now has to be read later.
    sort_names(peft_config)
    parse_adapter_config(peft_config.to_dict(), "the new adapter's config")
    _train_in_float32(adapted)
    return adapted


def _not_adaptable(model: PreTrainedModel) -> list[str] | None:
    """The linear layers that all-linear leaves out; None for none.

    A layer that does more than a product, such as a router that also chooses, does not return what LoRA adds to. Mamba
    reads the weights of some layers past their adapters; PEFT refuses one of them.
    """
    names = [name for name, module in model.named_modules() if _computes_more(module)]
    names += READ_BY_WEIGHT.get(model.config.model_type, [])
    return names or None


def _computes_more(module: nn.Module) -> bool:
    """Whether `module` is an architecture's own variant of a linear layer that returns something else."""
    kind = type(module)
    own_code = kind.__module__.startswith(("transformers.models.", "transformers_modules."))
    if not isinstance(module, nn.Linear) or not own_code or kind.forward is nn.Linear.forward:
        return False
    inputs = torch.linspace(-1, 1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)[None]
    try:
        with torch.no_grad():
            found = module(inputs)
            expected = nn.functional.linear(inputs, module.weight, module.bias)
    except Exception:
        return True
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return True
    # An outline on the meta device has no values to compare.
    return not found.is_meta and not torch.allclose(found, expected)


def _check_layers(adapted: peft.PeftModel) -> None:
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and _computes_more(module.get_base_layer()):
            raise LoraError(
                f"lora.target_modules: {name.removeprefix('base_model.model.')} computes more than a product, so LoRA "
                "can't be added to it; leave it out, or use lora.target_modules=all-linear"
            )


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool) -> peft.PeftModel:
    """Add the adapter saved in `folder` to `model`, in place. Raise LoraError unless it is plain LoRA and fits."""
    adapted = add_adapter(model, read_adapter_config(folder), trainable=trainable, source=folder / CONFIG_FILE)
    load_adapter_weights(adapted, folder)
    return adapted


def add_adapter(
    model: PreTrainedModel, config: peft.LoraConfig, *, trainable: bool, source: Path | str = CONFIG_FILE
) -> peft.PeftModel:
    """Add an adapter of `config`, whose weights are still to be loaded, to `model`, in place; `source` is where the
    config is from. Raise LoraError unless it fits."""
    config.inference_mode = not trainable
    # The initial weights are drawn and then overwritten; that must not shift anyone else's random numbers.
    with _seeded(0), _no_false_warnings():
        try:
            adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=trainable)
        except (TypeError, ValueError, ImportError, RuntimeError, re.error) as error:
            raise LoraError(f"{source}: the adapter does not fit this base model: {error}") from error
    if trainable:
        # Before the weights are loaded: passing through the base's 16 bits would round them.
        _train_in_float32(adapted)
    else:
        adapted.requires_grad_(False)
        adapted.eval()
    refuse_unsavable(adapted, config)
    return adapted


def load_adapter_weights(model: peft.PeftModel, folder: Path) -> None:
    """Overwrite the adapter of `model` with the one saved in `folder`. Raise LoraError unless they match exactly."""
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = read_adapter_weights(
        folder, {name: weight.shape for name, weight in own.items()}, pruned_vocabulary(model)
    )
    # `own` shares its memory with the model. PEFT's set_peft_model_state_dict renames weights first, as for checkpoints
    # of whole models, and leaves out without a word what it then does not find.
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(slice_like(weights[name], weight))


def read_adapter_weights(
    folder: Path, shapes: Mapping[str, torch.Size], vocabulary: PrunedVocabulary | None = None
) -> dict[str, torch.Tensor]:
    """The weights saved in `folder` by PEFT's names, on the CPU in the dtype of the file.

    Raise LoraError unless names and shapes are exactly those of `shapes`, with all rows of a `vocabulary` that is
    pruned here.
    """
    if vocabulary is not None:
        shapes = {name: vocabulary.full_shape(name, shape) for name, shape in shapes.items()}
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{folder / WEIGHTS_FILE}: can't be read: {error}") from error
    for name in sorted(shapes.keys() ^ weights.keys()):
        what = "lacks" if name in shapes else "has the extra weight"
        raise LoraError(f"{folder}: the adapter does not fit this base model: it {what} {name}")
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise LoraError(
                f"{folder}: the adapter does not fit this base model: {name} has shape {tuple(weight.shape)}, "
                f"this model needs {tuple(shapes[name])}"
            )
    return weights if vocabulary is None else vocabulary.narrow(weights)


def save_adapter(model: peft.PeftModel, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `folder`.

    `weights` stand in for the trainable ones of the model's state.
    """
    for config in model.peft_config.values():
        # PEFT stores sets, whose order, and with it the bytes of the file, would vary from run to run.
        if isinstance(config, peft.LoraConfig):
            sort_names(config)
    vocabulary = pruned_vocabulary(model)
    if vocabulary is not None:
        named = (model.state_dict() if weights is None else weights).items()
        weights = vocabulary.widen({name: one for name, one in named if "lora_" in name or "modules_to_save" in name})
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    # unsloth adds the class and module of the model. No adapter needs them, and read_adapter_config refuses them.
    path = folder / CONFIG_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("auto_mapping") is not None:
        path.write_text(json.dumps(content | {"auto_mapping": None}, indent=2, sort_keys=True), encoding="utf-8")
    # PEFT writes a model card of empty headings.
    (folder / "README.md").unlink(missing_ok=True)


def trainable_parameters(model: nn.Module) -> int:
    """Number of trainable parameters; a weight that is used in two places counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _check_names(model: PreTrainedModel, key: str, wanted: Sequence[str]) -> None:
    existing = [name for name, _ in model.named_modules() if name]
    for name in wanted:
        if not any(module == name or module.endswith("." + name) for module in existing):
            ends = sorted({module.rpartition(".")[2] for module in existing} - {str(n) for n in range(1000)})
            raise LoraError(f"{key}: the model has no module {name}; its modules end in {', '.join(ends)}")


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _train_in_float32(model: peft.PeftModel) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def _no_false_warnings() -> Iterator[None]:
    """PEFT overlooks adapted parameters when it looks for what rank_pattern matches, and corrects fan_in_fan_out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _apply_with_unsloth(
    model: PreTrainedModel, config: LoraConfig, train_modules: Sequence[str], seed: int
) -> peft.PeftModel:
    import unsloth

    try:
        return unsloth.FastLanguageModel.get_peft_model(
            model, random_state=seed, use_gradient_checkpointing=False, **_options(config, train_modules)
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise LoraError(f"lora: unsloth can't create this adapter: {error}; use model.backend=transformers") from error


def _options(config: LoraConfig, train_modules: Sequence[str]) -> dict[str, Any]:
    return {
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.target_modules,
        "use_rslora": config.use_rslora,
        "init_lora_weights": config.init_lora_weights,
        "modules_to_save": list(train_modules) or None,
    }
