"""Quantised base weights by bitsandbytes: int8 (Dettmers et al. 2022), nf4 (Dettmers et al. 2023) and fp4."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from arcft.config.model import ModelConfig
from arcft.console import note
from arcft.errors import ModelError
from arcft.models.families import READ_BY_WEIGHT
from arcft.models.four_bit_rows import correct_four_bit_rows

FOUR_BITS = ("nf4", "fp4")
_HEAD = "lm_head"
"""In a skip list, the output layer under whatever name."""

_NOT_QUANTISABLE = {
    **READ_BY_WEIGHT,
    "gemma3n_text": ["prediction_coefs", "correction_coefs"],
    "hy_v4": ["weights_proj"],
    "roc_bert": ["map_inputs_layer"],
}
"""By model type, layers that can't be quantised: the model changes their weights or outputs in place, or asks for the
weights' dtype."""


def bitsandbytes_config(
    config: ModelConfig, dtype: torch.dtype, model: PreTrainedModel
) -> transformers.BitsAndBytesConfig:
    """How transformers quantises while it loads.

    Args:
        config: Format and skip list.
        dtype: Of the arithmetic.
        model: The model before it is quantised, or its outline on the meta device, for the names of its layers.
    """
    skipped = [_pattern(name) for name in _skipped(config, model)]
    if config.quantization == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    correct_four_bit_rows()
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def quantise(model: PreTrainedModel, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A quantised copy of `model`, whose weights are in memory: drawn, or read from a GGUF file."""
    architecture = model.config
    # transformers takes it for weights that are quantised already.
    if "quantization_config" in architecture.to_dict():
        del architecture.quantization_config
    with no_progress_bar():
        return type(model).from_pretrained(
            None,
            config=architecture,
            state_dict=model.state_dict(),
            quantization_config=bitsandbytes_config(config, dtype, model),
            attn_implementation=config.attn_implementation,
            dtype=dtype,
            device_map={"": device},
        )


def prepare_quantised(model: PreTrainedModel, config: ModelConfig) -> None:
    """Make a freshly quantised `model` compute the same in training and evaluation, and say what stayed as it was."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks weights in the first evaluation pass, and the packed
            # product has no gradient: an adapter would silently stop learning.
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt) and module.weight.device.type == "cpu":
            module.state = _weight_only(module.state)
    quantised = [module for module in model.modules() if is_quantised(module)]
    if not quantised:
        raise ModelError(
            f"model.quantization={config.quantization}: nothing in this model of type {model.config.model_type} can be "
            "quantised, since bitsandbytes takes plain linear layers only, and model.quantization_skip leaves some of "
            "them out; use model.quantization=none"
        )
    if config.quantization == "int8" and any(module.weight.device.type != "cpu" for module in quantised):
        note(
            "model.quantization=int8: on a GPU, bitsandbytes treats columns with outliers apart, found over the whole "
            "batch, so an answer can depend on the prompts beside it; nf4 has no such effect"
        )
    _note_unquantised_experts(model, config)


def num_parameters(model: nn.Module) -> int:
    """Number of parameters. A weight in two places counts once, and packed weights count as what they hold: a byte
    holds two weights of four bits."""
    packed: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, ParametrizationList):
            packed |= {id(module.original): step.quant_state for step in module if _unpacks(step)}
    total = 0
    for parameter in model.parameters():
        state = vars(parameter).get("quant_state") or packed.get(id(parameter))
        total += parameter.numel() if state is None else math.prod(state.shape)
    return total


def _unpacks(parametrization: Any) -> bool:
    return type(parametrization).__name__ == "Bnb4bitParametrization"


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without transformers' bars over the loading of weights."""
    was_shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            enable_progress_bar()


def is_quantised(module: nn.Module) -> bool:
    """Whether `module` is a linear layer whose weight bitsandbytes has quantised."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt") and type(module).__module__.startswith(
        "bitsandbytes."
    )


def _skipped(config: ModelConfig, model: PreTrainedModel) -> list[str]:
    """The ends of the names of modules that are not quantised."""
    names = [*config.quantization_skip, *_NOT_QUANTISABLE.get(model.config.model_type, [])]
    if _HEAD in names:
        head = model.get_output_embeddings()
        names += [name for name, module in model.named_modules() if module is head]
    return names


def _pattern(name: str) -> str:
    """The regular expression, matched from the beginning of a module's path, for `name` as the path's last part, and
    for all that lies below it."""
    return rf"(.*\.)?{re.escape(name)}(\..*)?$"


def _weight_only(state: Any) -> Any:
    """`state` of an int8 layer for a CPU: the weight is dequantised and multiplied, in training and evaluation alike.

    On a CPU, bitsandbytes 0.50 does so in training alone. In evaluation it also quantises the inputs, with a warning
    for each product, and which columns it leaves out depends on the other rows of the batch, so answers would too. On a
    GPU it has no other product.
    """
    import bitsandbytes

    class WeightOnlyState(bitsandbytes.MatmulLtState):
        is_training = property(lambda self: True, lambda self, value: None)

        def __setattr__(self, name: str, value: Any) -> None:
            # PEFT 0.21 dequantises weights for DoRA, and loses their scales.
            if name != "SCB" or value is not None:
                super().__setattr__(name, value)

    new = WeightOnlyState()
    for name, value in vars(state).items():
        if name != "is_training":
            setattr(new, name, value)
    return new


def _note_unquantised_experts(model: PreTrainedModel, config: ModelConfig) -> None:
    """Note the weights of experts that bitsandbytes leaves as they are: they are no linear layers."""
    fused = [parameter for parameter in model.parameters() if parameter.ndim == 3 and parameter.is_floating_point()]
    share = _count(fused) / num_parameters(model)
    if share > 0.05:
        note(
            f"model.quantization={config.quantization}: {share:.0%} of the weights are in fused experts, which "
            f"bitsandbytes does not quantise; they stay in {str(fused[0].dtype).removeprefix('torch.')}"
        )


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit formats, as transformers asks for them."""

Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Makes a tensor without content."""


def fill_quantised(model: nn.Module, empty: Empty) -> list[torch.Tensor]:
    """Give the quantised layers of an outline weights in the form that bitsandbytes stores; returns all of them."""
    made: list[torch.Tensor] = []

    def new(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        made.append(empty(shape, dtype))
        return made[-1]

    for module in model.modules():
        # Layers of PEFT have the same names.
        if not type(module).__module__.startswith("bitsandbytes."):
            continue
        if type(module).__name__ == "Linear8bitLt":
            _fill_int8(module, new)
        elif type(module).__name__ == "Linear4bit":
            _fill_four_bits(module, new)
    return made


def _fill_int8(layer: Any, new: Callable[..., torch.Tensor]) -> None:
    rows, columns = layer.out_features, layer.in_features
    weight: Any = nn.Parameter(new(rows, columns, dtype=torch.int8), requires_grad=False)
    weight.CB = weight.SCB = None
    layer._parameters["weight"] = weight
    layer.state.CB, layer.state.SCB = weight.data, new(rows, dtype=torch.float32)


def _fill_four_bits(layer: Any, new: Callable[..., torch.Tensor]) -> None:
    from bitsandbytes.functional import QuantState

    rows, columns = layer.out_features, layer.in_features
    old = layer.weight
    blocks = -(-rows * columns // BLOCK)
    # With double quantisation, the scales of the blocks are themselves in blocks of 256 8-bit numbers.
    scales = QuantState(
        absmax=new(-(-blocks // 256), dtype=torch.float32),
        code=new(256, dtype=torch.float32),
        blocksize=256,
        dtype=torch.float32,
    )
    weight: Any = nn.Parameter(new(-(-rows * columns // 2), 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(
        absmax=new(blocks, dtype=torch.uint8),
        shape=torch.Size((rows, columns)),
        code=new(16, dtype=torch.float32),
        blocksize=BLOCK,
        quant_type=old.quant_type,
        dtype=layer.compute_dtype,
        offset=new(dtype=torch.float32),
        state2=scales,
    )
    layer._parameters["weight"] = weight
    # See quantization.py.
    layer.support_avx512bf16_for_cpu = False
