"""Models whose weights are sharded over ranks by torch's FSDP2: each parameter is a DTensor, of which this rank has a
slice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import peft
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from arcft.models.base_model import base_model

Strategy = Literal["full_shard", "shard_grad_op"]


def shard(model: PreTrainedModel | peft.PeftModel, strategy: Strategy, device: torch.device) -> None:
    """Shard the weights of `model` over all ranks, in place, layer by layer; the slices lie on `device`.

    Gradients are added up over ranks, not averaged. `full_shard` frees the gathered weights of a layer after its
    forward pass and gathers them again for the backward pass; `shard_grad_op` keeps them in between.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    keep = strategy == "shard_grad_op"
    for layer in blocks(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=not keep)
    # What is in no layer, such as the head, is used first in the backward pass; freeing it in between gains nothing.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # Buffers stay whole.
    cast(nn.Module, model).to(device)
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        module.set_gradient_divide_factor(1.0)
        # gloo adds, and knows neither averages nor factors.
        module.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on `model`."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def gathered_weights(model: nn.Module, strategy: Strategy | None) -> Iterator[None]:
    """Hold all weights whole on each rank, so that ranks may run different numbers of passes; none is to be trained.

    `strategy` is what the model was sharded with; None for a model that is not sharded, where this does nothing.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(strategy == "full_shard" and module is not model, recurse=False)
            module.reshard()


def saved_weights(model: nn.Module, *, keep: bool) -> dict[str, torch.Tensor] | None:
    """The state of a sharded `model` with its weights whole on the CPU, of a PEFT model only the trainable ones; None
    for a model that is not sharded.

    All ranks call it, and those that do not `keep` the result get an empty one.
    """
    if not is_sharded(model):
        return None
    trained_only = isinstance(model, peft.PeftModel)
    found = {}
    # Tied weights stay one tensor, as those who write them expect.
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained_only and not tensor.requires_grad:
            continue
        if id(tensor) not in copies:
            value = whole(tensor.detach()).cpu()
            copies[id(tensor)] = value if keep else torch.empty(0)
        if keep:
            found[name] = copies[id(tensor)]
    return found


def is_slice(value: Any) -> bool:
    """Whether `value` is a sharded tensor."""
    return isinstance(value, DTensor)


def whole(value: Any) -> Any:
    """`value`, or if it is a slice of a tensor the whole of it. All ranks call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(state: Any, *, keep: bool) -> Any:
    """The state of an optimizer with whole tensors on the CPU; None for ranks that do not `keep` it."""
    found = tree_map(lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, state)
    return found if keep else None


def slices_like(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of `whole_state`: the slices that belong here where parameters of `optimizer` are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_slice, parameters)):
        return dict(state)
    entries = {
        number: {name: slice_like(value, parameters[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def slice_like(value: Any, target: torch.Tensor) -> Any:
    """`value`, or if it is a whole tensor of the shape of the sharded `target` the slice of it that belongs here."""
    if not isinstance(target, DTensor) or not isinstance(value, torch.Tensor) or value.shape != target.shape:
        return value
    # Every rank has the whole tensor, so nothing is sent.
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def load_sharded(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the weights of a sharded model by whole ones. Raise RuntimeError unless names and shapes fit; a tied
    weight may be left out."""
    tied = set(cast(dict[str, str], getattr(model, "all_tied_weights_keys", {})))
    state = model.state_dict()
    if weights.keys() - state.keys() or state.keys() - weights.keys() - tied:
        raise RuntimeError(f"other names: {', '.join(sorted(state.keys() ^ weights.keys())[:5])}")
    with torch.no_grad():
        for name, weight in weights.items():
            state[name].copy_(slice_like(weight, state[name]))


def blocks(model: PreTrainedModel | peft.PeftModel) -> list[nn.Module]:
    """The transformer blocks of `model`, which transformers keeps on one device each."""
    base = base_model(model)
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]
