"""Dense base weights, plain PEFT adapters and merged models, for export."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from arcft.models.adapter_config import read_adapter_config
from arcft.models.lora import add_adapter, load_adapter_weights, save_adapter
from arcft.models.quantization import is_quantised, no_progress_bar


@dataclasses.dataclass(frozen=True)
class PlainAdapter:
    """An adapter as PEFT's ordinary LoRA (or DoRA), whose initialisation leaves the base weights alone."""

    config: peft.LoraConfig
    weights: dict[str, torch.Tensor]
    """By PEFT's names."""

    def apply_to(self, base: PreTrainedModel) -> peft.PeftModel:
        """The adapter on `base`, which is modified in place. Raise LoraError where it does not fit."""
        adapted = add_adapter(base, copy.deepcopy(self.config), trainable=False)
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        with torch.no_grad():
            for name, weight in own.items():
                given = self.weights[name]
                # PiSSA and OLoRA cut the rank to a layer's smaller side; zeros up to the config's change nothing.
                weight.zero_()[tuple(map(slice, given.shape))].copy_(given)
        return adapted


def changes_base(config: peft.LoraConfig) -> bool:
    """Whether the initialisation takes what the adapter begins with off the base weights, as PiSSA and OLoRA do."""
    return config.init_lora_weights in ("pissa", "olora")


def apply_saved_adapter(base: PreTrainedModel, folder: Path) -> tuple[peft.PeftModel, PlainAdapter]:
    """The adapter saved in `folder` on `base`, in place, as it was trained; and the plain adapter for `dense_base`."""
    config = read_adapter_config(folder)
    adapted = add_adapter(base, copy.deepcopy(config), trainable=False)
    load_adapter_weights(adapted, folder)
    config.init_lora_weights = True
    return adapted, PlainAdapter(config, _state(adapted))


def adapter_for_original_base(base: PreTrainedModel, folder: Path) -> PlainAdapter:
    """The adapter saved in `folder` as a plain one for `base` as it is, which is modified in place.

    Where the initialisation moved A0 and B0 out of the base weights, the trained update is B A - B0 A0, an adapter of
    twice the rank: PEFT's `subtract_mutated_init`, also for DoRA, whose norms are of the sum.
    """
    config = read_adapter_config(folder)
    if not changes_base(config):
        return apply_saved_adapter(base, folder)[1]
    adapted = add_adapter(base, copy.deepcopy(config), trainable=False)
    initial = _state(adapted)
    load_adapter_weights(adapted, folder)
    weights = _state(adapted)
    for name, weight in weights.items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weight, initial[name]])
        elif ".lora_B." in name:
            weights[name] = torch.cat([weight, -initial[name]], dim=1)
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)  # type: ignore[assignment]
    return PlainAdapter(config, weights)


def dense_base(adapted: peft.PeftModel) -> PreTrainedModel:
    """The base model under `adapted`, whose wrappers are removed in place: dequantised, and where the adapter's
    initialisation changed it, as changed."""
    base: Any = adapted.get_base_model()
    for path, module in list(base.named_modules()):
        if isinstance(module, LoraLayer) and path in dict(base.named_modules()):
            base.set_submodule(path, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            base.set_submodule(path, module.original_module)
    # PEFT would take it for a second adapter on the same model.
    vars(base).pop("peft_config", None)
    return without_quantisation(base)


@torch.no_grad()
def without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with dense weights, and nothing in its config that says otherwise; unquantised weights are shared."""
    architecture = copy.deepcopy(model.config)
    if "quantization_config" in architecture.to_dict():
        del architecture.quantization_config
    quantised = [(path, module) for path, module in model.named_modules() if is_quantised(module)]
    if not quantised:
        model.config = architecture
        return model
    for path, module in quantised:
        model.set_submodule(path, _dense(module))
    with no_progress_bar():
        dense = type(model).from_pretrained(
            None,
            config=architecture,
            state_dict=model.state_dict(),
            dtype=model.get_input_embeddings().weight.dtype,
            attn_implementation=architecture._attn_implementation,
        )
    return dense.eval()


def merged(base: PreTrainedModel, adapter: PlainAdapter) -> PreTrainedModel:
    """`base`, dense and modified in place, with the adapter in its weights."""
    adapted = adapter.apply_to(base)
    model: Any = adapted.merge_and_unload(safe_merge=True)
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        # Of two trained copies of one weight, PEFT leaves both.
        model.tie_weights()
    return model.eval()


def save_plain_adapter(adapted: peft.PeftModel, folder: Path, base_name: str) -> None:
    """Write `adapted` in PEFT's format; `base_name` is the folder or hub id where PEFT finds its base model."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base_name
    save_adapter(adapted, folder)


def _state(adapted: peft.PeftModel) -> dict[str, torch.Tensor]:
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: weight.detach().clone() for name, weight in state.items()}


def _dense(module: Any) -> nn.Module:
    state = None
    if type(module).__name__ == "Linear8bitLt":
        if module.weight.CB is not None:
            # New weights, as OLoRA sets them, whose scales go with them until the first pass.
            module.init_8bit_state()
        state = module.state
    weight = dequantize_bnb_weight(module.weight, state)
    layer: nn.Module
    if issubclass(module.source_cls, Conv1D):
        layer = Conv1D(module.out_features, module.in_features)
        weight = weight.T
    else:
        layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = module.bias
    return layer
