"""The memory of training passes, measured on fake tensors.

Every operation on floating-point tensors runs with torch's FakeTensors, which have shapes and dtypes but no values, and
the sizes of the tensors that are alive are added up, so no architecture, adapter or loss needs a formula of its own.
Integers are few and real, because code depends on their values.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arcft.models.quantization import fill_quantised
from arcft.training.c_heap import CHeap

aten: Any = torch.ops.aten
Tensors = Mapping[str, torch.Tensor]

WORKSPACE = 0
"""The name of a kernel's own memory among the allocations, where tensors have addresses."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of a model in training."""

    weights: int
    gradients: int
    """Of the trainable weights."""

    largest: int
    """The largest trainable weight."""

    peak: int
    """The most that is alive at any time during the passes, weights and gradients included."""

    kept: int
    """What the C library holds beyond `peak` at most, because freed blocks don't fit later tensors; 0 on a GPU, and
    where it isn't known."""


def footprint(
    model: nn.Module,
    batches: Sequence[Tensors],
    loss: Callable[[nn.Module, Tensors], torch.Tensor],
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    keeps_gradients: bool,
    heap_limit: int = 0,
) -> Footprint:
    """Pass `batches` through `model` one by one, forward and backward, on fake tensors.

    Args:
        model: With its weights on the meta device, in training mode; they are replaced by fake ones.
        batches: Real tensors; only integers among them.
        loss: Computes the scalar that is differentiated.
        device: Where the pass would run.
        autocast: The dtype of autocast around the model's forward pass, as accelerate puts it there; None for none.
        keeps_gradients: Whether there are gradients of earlier passes already.
        heap_limit: Bytes of addresses that may be taken to find out what the C library keeps; 0 to leave it out.

    Raises whatever torch raises for code that depends on the values of floating-point tensors.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights = _materialise(model, fake, device)
    trained = [parameter for parameter in weights if parameter.requires_grad]
    gradients = [_nbytes(parameter) for parameter in trained]
    if keeps_gradients:
        with fake:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
    if autocast is not None:
        _autocast(model, device.type, autocast)
    with CHeap(heap_limit if device.type == "cpu" else 0) as heap:
        counter = _Counter(fake, heap)
        counter.add(*weights, *(parameter.grad for parameter in trained if parameter.grad is not None))
        at_rest = counter.live
        with counter:
            for batch in batches:
                loss(model, batch).backward()
                if not keeps_gradients:
                    for parameter in trained:
                        parameter.grad = None
    return Footprint(
        weights=at_rest - (sum(gradients) if keeps_gradients else 0),
        gradients=sum(gradients),
        largest=max(gradients, default=0),
        peak=counter.peak,
        kept=max(0, (heap.peak or 0) - counter.peak),
    )


def _materialise(model: nn.Module, fake: FakeTensorMode, device: torch.device) -> list[torch.Tensor]:
    """Replace the model's tensors on the meta device by fake ones on `device`; returns all that it has.

    Shared weights stay shared."""

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with fake:
            return torch.empty(shape, dtype=dtype, device=device)

    quantised = fill_quantised(model, empty)
    replaced: dict[int, torch.Tensor] = {}
    keep = []  # an id is only unique among living objects
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, FakeTensor):
                    continue
                if id(tensor) not in replaced:
                    keep.append(tensor)
                    new = empty(tensor.shape, tensor.dtype)
                    is_weight = isinstance(tensor, nn.Parameter)
                    replaced[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_weight else new
                tensors[name] = replaced[id(tensor)]  # type: ignore[assignment]
    return [*replaced.values(), *quantised]


def _autocast(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Wrap the forward pass as accelerate does for mixed precision."""
    model.forward = convert_outputs_to_fp32(torch.autocast(kind, dtype=dtype)(model.forward))


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class _Counter(TorchDispatchMode):
    """Runs operations on FakeTensors within `fake`, adds up the bytes of the storages that are alive, and has `heap`
    allocate them."""

    def __init__(self, fake: FakeTensorMode, heap: CHeap) -> None:
        super().__init__()
        self.fake = fake
        self.heap = heap
        self.live = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def add(self, *tensors: Any) -> None:
        """Count the storages of `tensors` from now on until they are freed."""
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))  # type: ignore[misc]
                self.heap.allocate(key, size)
                self.live += size
                self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int) -> None:
        self.live -= size
        self.heap.free(key)
        del self._alive[key]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_real(func, args, kwargs):
            result = func(*args, **kwargs)
        elif func is aten.equal.default:
            # Comparisons guard fast paths; assume that they are taken.
            return True
        else:
            args = _masks_to_indices(func, args)
            with self.fake:
                result = func(*args, **kwargs)
            workspace = _workspace(func, args)
            if workspace:
                self.peak = max(self.peak, self.live + workspace)
                self.heap.allocate(WORKSPACE, workspace)
                self.heap.free(WORKSPACE)
        self.add(*tree_leaves(result))
        return result

    def _is_real(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors:
            return not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        dtype = kwargs.get("dtype") or (torch.int64 if func is aten.arange.default else torch.get_default_dtype())
        return not dtype.is_floating_point


def _masks_to_indices(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Masks among the indices of `args` as the places where they are true: their number is a shape of the result."""
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return args
    indices: list[Any] = []
    for index in args[1]:
        is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        indices += list(index.nonzero(as_tuple=True)) if is_mask else [index]
    return (args[0], indices, *args[2:])


def _workspace(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a kernel allocates for itself."""
    if str(func).startswith("bitsandbytes.gemm_4bit") and args[0].device.type == "cpu":
        rows, columns = args[2]
        return int(rows * columns * args[0].element_size())
    return 0
