"""training.compile: the model's layers compiled by torch, one graph for all of them and for every length."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

from arcft.errors import ArcftError


class CompileError(ArcftError):
    """A model, or a machine, that can't compile."""


def check_compiler(device: torch.device) -> None:
    """Raise CompileError unless torch finds what it compiles with: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type == "cuda":
        if not has_triton():
            raise CompileError("training.compile=true needs Triton, which is not installed; use training.compile=false")
        return
    names = [name for name in inductor.cpp.cxx if name is not None]
    if not any(shutil.which(name) for name in names):
        raise CompileError(
            f"training.compile=true needs a C++ compiler ({' or '.join(names)}, or what CXX names), and there is none "
            "here; install one, or use training.compile=false"
        )


def compile_layers(model: nn.Module) -> None:
    """Compile the layers of `model` in place, for sequences of any length. Names of weights stay the same.

    Nothing is compiled before the first forward pass. Raise CompileError for a model whose layers can't be told.
    """
    layers = _layers(model)
    if not layers:
        raise CompileError(
            f"training.compile=true: {type(model).__name__} has no layers that could be compiled one by one; "
            "use training.compile=false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


@contextlib.contextmanager
def not_compiled(model: nn.Module) -> Iterator[None]:
    """Within this context, layers run as written: decoding has caches and shapes of its own to compile for."""
    layers = [layer for layer in _layers(model) if layer._compiled_call_impl is not None]
    compiled = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in zip(layers, compiled, strict=True):
            layer._compiled_call_impl = call


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
