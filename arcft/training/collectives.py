"""Communication between the ranks of a training run. In a single process each but `add_up` returns its own
input.

Gradients are added up once a step, after its last backward pass, rather than by hooks in the backward pass as in
torch's DistributedDataParallel: so passes may differ in number between ranks, parameters may be left unused by some,
and a pass may be repeated. The sums are the same.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from arcft.models.sharding import is_slice
from arcft.ranks import LostRankError, RankError
from arcft.training.stopping import StopRequest

Value = TypeVar("Value")

BUCKET = 32 * 2**20
"""Gradient elements per all-reduce."""


def count() -> int:
    """The number of ranks that are connected; 1 for a process that trains alone, or goes on alone after `leave`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if count() > 1 else 0


def sums(*numbers: int) -> list[int]:
    """The sum of each number over all ranks."""
    if count() == 1:
        return list(numbers)
    totals = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(totals)
    return totals.tolist()


def gathered(value: Value) -> list[Value]:
    """The values of all ranks, in order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Value) -> Value:
    """The value of rank 0."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def together(work: Callable[[], Value]) -> list[Value]:
    """Run `work`, which must not call collectives, on each rank; return the results in rank order.

    Where it fails on some ranks, the first of these raises its error, and all others raise RankError.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        if count() == 1:
            raise
        failure = error
    outcomes = gathered((result, None if failure is None else f"{type(failure).__name__}: {failure}"))
    failed = [number for number, (_, words) in enumerate(outcomes) if words is not None]
    if failed:
        if failure is not None and failed[0] == rank():
            raise failure
        raise RankError(f"rank {failed[0]}: {outcomes[failed[0]][1]}") from failure
    return [result for result, _ in outcomes]  # type: ignore[misc]


def agreed_stop(stop: StopRequest) -> str | None:
    """Why to stop, the same on all ranks: they stop as soon as one of them is asked to."""
    if count() == 1:
        return stop.reason
    if not sums(stop.reason is not None)[0]:
        return None
    stop.request(next(reason for reason in gathered(stop.reason) if reason is not None))
    return stop.reason


def deal(items: Sequence[Value]) -> Sequence[Value]:
    """Every count()-th item, starting at this rank's number."""
    return items[rank() :: count()]


def undeal(shares: Sequence[Sequence[Value]]) -> list[Value]:
    """Merge the ranks' results, one per item, into the order of the items; the inverse of `deal`."""
    total = sum(map(len, shares))
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def add_up(numbers: Sequence[float], parameters: Iterable[nn.Parameter]) -> list[float]:
    """Add up each of `numbers` over the ranks (returned), and the gradients of `parameters`, in place.

    A rank that left a parameter unused adds zero to its gradient. Sharded parameters are left out: their gradients are
    added up in the backward pass.
    """
    own = [parameter for parameter in parameters if parameter.requires_grad and not is_slice(parameter)]
    used = [float(parameter.grad is not None) for parameter in own]
    sent = torch.tensor([*numbers, *used], dtype=torch.float64)
    dist.all_reduce(sent)
    totals = sent.tolist()
    gradients = []
    for parameter, users in zip(own, totals[len(numbers) :], strict=True):
        if users:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))
    return totals[: len(numbers)]


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one dtype, together at most BUCKET elements unless one alone has more."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        size = sum(each.numel() for each in bucket) + tensor.numel()
        if bucket and (tensor.dtype != bucket[0].dtype or size > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def same_weights(model: nn.Module) -> None:
    """Give all ranks the trainable weights of rank 0, in place."""
    if count() == 1:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not is_slice(parameter):
                dist.broadcast(parameter.data, src=0)


def leave() -> None:
    """Disconnect from the other ranks; this process goes on alone, or ends."""
    if count() > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_ranks_in_words(message: Callable[[], str]) -> Iterator[None]:
    """Raise LostRankError with `message()` where the connection to another rank breaks."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not _is_lost_connection(error):
            raise
        # A launcher ends all ranks when one is lost; the message comes first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostRankError(message()) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    # gloo's errors have no class of their own.
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "closed by peer"))
