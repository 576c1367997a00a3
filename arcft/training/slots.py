"""Training several stacked adapters at once, each as if it were alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from arcft.models.stacked_lora import StackedLora
from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import collate
from arcft.training.chunked_loss import cross_entropy_sums
from arcft.training.finite import SMALLEST_SCALE

_INITIAL_SCALE = 2.0**14
"""Loss scale in float16 that each task starts with."""

_NORM_CHUNK = 4096
"""Numbers whose norm is summed in one go; see _norm."""


@dataclasses.dataclass(frozen=True)
class SlotStep:
    """The result of one optimizer step of one slot."""

    loss: float
    """Mean cross entropy over the slot's supervised tokens in nats, before the step."""

    gradient_norm: float
    """L2 norm of the gradient before clipping."""

    tokens: int
    """Number of supervised tokens."""

    finite: bool
    """False if loss or gradient was not finite; the slot was then not updated."""


@dataclasses.dataclass
class _SlotProgress:
    """The optimizer and schedule of one slot."""

    learning_rate: float
    factor: Callable[[int], float]
    weights: nn.Parameter
    """The slot's master weights [P] during an update, empty otherwise: slots may be reallocated between steps."""

    optimizer: torch.optim.AdamW
    steps: int = 0
    loss_scale: float = 1.0


class SlotTrainer:
    """Optimizer steps on the slots of a StackedLora.

    One forward and backward pass serves all slots, but each has its own AdamW, learning rate, gradient clipping and
    step count, so that it is trained as it would be alone.
    """

    def __init__(
        self, stacked: StackedLora, *, pad_id: int, max_grad_norm: float, positions: Positions | None = None
    ) -> None:
        """Set up a trainer; call `begin` for each slot.

        Args:
            stacked: The adapters. The number of slots and their rank may change between steps.
            pad_id: Token that pads batches on the right.
            max_grad_norm: Each slot's gradient is clipped to this L2 norm.
            positions: Position ids that jump; None counts from 0.
        """
        self.stacked = stacked
        self.pad_id = pad_id
        self.max_grad_norm = max_grad_norm
        self.positions = positions
        self.gradient_checkpointing = False
        """Recompute activations in the backward pass instead of storing them; may be changed between steps."""
        self._checkpointed = False
        layers = stacked.model.modules()
        self._layers = [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]
        self._progress: dict[int, _SlotProgress] = {}
        self._empty = stacked.master(0).new_empty(0)
        self._widened = self._empty
        """Buffer [P] for a gradient in the master's dtype, if the compute dtype differs; else empty."""

    def begin(self, slot: int, *, learning_rate: float, factor: Callable[[int], float]) -> None:
        """Prepare `slot` for a new task: initial weights, a new AdamW without weight decay, step 0.

        Step i, from 0, has the learning rate `learning_rate * factor(i)`.
        """
        self.stacked.reset(slot)
        old = self._progress.pop(slot, None)
        weights = nn.Parameter(self._empty, requires_grad=False)
        fused = weights.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0, fused=fused)
        progress = _SlotProgress(learning_rate, factor, weights, optimizer)
        if self.stacked.compute_dtype == torch.float16:
            progress.loss_scale = _INITIAL_SCALE
        _begin_moments(progress, self.stacked.size, None if old is None else old.optimizer.state[old.weights])
        self._progress[slot] = progress

    def step(self, examples: Sequence[Sequence[Example]], first: int = 0) -> list[SlotStep]:
        """Take one optimizer step in several slots.

        Args:
            examples: `examples[i]` are for slot `first + i`; equally many for each slot. Raise ValueError otherwise.
            first: The first slot.

        Returns:
            The result for each slot. The loss that is differentiated is the sum over slots of each one's mean.

        If memory runs out, the error is passed on, and weights and optimizers are as before the step.
        """
        slots = range(first, first + len(examples))
        batch = _SlotBatch(examples, self.pad_id, self.positions, self.stacked.device)
        self._allocate(slots)
        losses, norms = self._gradients(batch, slots)
        results = []
        for slot, loss, norm, tokens in zip(slots, losses, norms, batch.counts, strict=True):
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                self._update(slot, norm)
            results.append(SlotStep(loss, norm, tokens, finite))
        return results

    def loss(self, slot: int, examples: Sequence[Example]) -> float:
        """The mean cross entropy over the supervised tokens of `examples` in nats, without gradients."""
        total, count = 0.0, 0
        with torch.no_grad(), self.stacked.training(slot, 1):
            for example in examples:
                batch = _SlotBatch([[example]], self.pad_id, self.positions, self.stacked.device)
                total += batch.losses(self.stacked.model).item() * batch.counts[0]
                count += batch.counts[0]
        return total / count

    def move(self, source: int, target: int) -> None:
        """Move weights, optimizer and schedule from slot `source` to slot `target`; `source` needs a new `begin`."""
        self.stacked.move(source, target)
        self._progress[target] = self._progress.pop(source)

    def snapshot(self, slot: int) -> torch.Tensor:
        """A copy of the slot's master weights [P], to `restore` later."""
        return self.stacked.master(slot).clone()

    def restore(self, slot: int, weights: torch.Tensor) -> None:
        """Restore weights [P] from `snapshot`."""
        self.stacked.master(slot).copy_(weights)
        self.stacked.publish(slot)

    def _allocate(self, slots: range) -> None:
        """Allocate everything that the updates need: the number and size of the slots may have changed."""
        for slot in [slot for slot in self._progress if slot >= self.stacked.slots]:
            del self._progress[slot]
        size = self.stacked.size
        if self.stacked.compute_dtype != self._empty.dtype and len(self._widened) != size:
            self._widened = self._empty.new_empty(size)
        for slot in slots:
            progress = self._progress[slot]
            if len(progress.optimizer.state[progress.weights]["exp_avg"]) != size:
                # Moments of weights of another rank are meaningless; the schedule continues.
                _begin_moments(progress, size, None)

    def _gradients(self, batch: _SlotBatch, slots: range) -> tuple[list[float], list[float]]:
        """Compute the slots' gradients, times their loss scales; return losses and gradient norms without those."""
        model, count = self.stacked.model, len(slots)
        gradients = [self.stacked.gradient(slot) for slot in slots]
        while True:
            for gradient in gradients:
                gradient.zero_()
            scales = [self._progress[slot].loss_scale for slot in slots]
            with self.stacked.training(slots.start, count), self._checkpointing():
                losses = batch.losses(model)
                (losses * losses.new_tensor(scales)).sum().backward()
            norms = torch.stack([_norm(gradient, self._empty.dtype) for gradient in gradients])
            # The only synchronisation with the device in a step.
            found = torch.stack([losses.detach().to(norms.dtype), norms]).tolist()
            overflowed = [
                slot
                for slot, loss, norm, scale in zip(slots, *found, scales, strict=True)
                if scale > SMALLEST_SCALE and math.isfinite(loss) and not math.isfinite(norm)
            ]
            if self.stacked.compute_dtype != torch.float16 or not overflowed:
                return found[0], [norm / scale for norm, scale in zip(found[1], scales, strict=True)]
            for slot in overflowed:
                self._progress[slot].loss_scale /= 2

    def _update(self, slot: int, norm: float) -> None:
        progress, gradient = self._progress[slot], self.stacked.gradient(slot)
        # The same formula as torch.nn.utils.clip_grad_norm_.
        clip = min(1.0, self.max_grad_norm / (norm + 1e-6)) / progress.loss_scale
        if gradient.dtype != self._empty.dtype:
            gradient = self._widened.copy_(gradient)
        if clip != 1.0:
            gradient.mul_(clip)
        progress.optimizer.param_groups[0]["lr"] = progress.learning_rate * progress.factor(progress.steps)
        progress.weights.data, progress.weights.grad = self.stacked.master(slot), gradient
        progress.optimizer.step()
        progress.weights.grad, progress.weights.data = None, self._empty
        progress.steps += 1
        self.stacked.publish(slot)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        if self.gradient_checkpointing != self._checkpointed:
            if self.gradient_checkpointing:
                self.stacked.model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            else:
                self.stacked.model.gradient_checkpointing_disable()
            self._checkpointed = self.gradient_checkpointing
        # transformers checkpoints layers only in training mode, which must not reach the dropout below them.
        for layer in self._layers:
            layer.training = self._checkpointed
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False


class _SlotBatch:
    """Examples of several slots as tensors on the model's device, with the places of their supervised tokens."""

    def __init__(
        self, examples: Sequence[Sequence[Example]], pad_id: int, positions: Positions | None, device: torch.device
    ) -> None:
        if len({len(own) for own in examples}) != 1:
            raise ValueError(f"{[len(own) for own in examples]} examples: each slot needs equally many")
        inputs: dict[str, torch.Tensor] = collate([example for own in examples for example in own], pad_id, positions)
        labels = inputs.pop("labels")
        targets = torch.full_like(labels, IGNORED)
        targets[:, :-1] = labels[:, 1:]
        targets = targets.view(len(examples), -1)
        supervised = targets != IGNORED
        self.counts: list[int] = supervised.sum(dim=1).tolist()
        # The places of each slot's supervised tokens, in order. Slots with fewer are padded with places without target.
        places = supervised.int().argsort(dim=1, descending=True, stable=True)[:, : max(self.counts)]
        offsets = torch.arange(len(examples)).unsqueeze(1) * targets.shape[1]
        self.inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        self.targets = targets.gather(1, places).to(device, non_blocking=True)
        self.places = (places + offsets).to(device, non_blocking=True)
        self.weights = (1 / torch.tensor(self.counts, dtype=torch.float64)).to(device)

    def losses(self, model: nn.Module) -> torch.Tensor:
        """The mean cross entropy of each slot in nats: [slots], float32, or float64 for a float64 model."""
        sums = cross_entropy_sums(model, {**self.inputs, "use_cache": False}, self.places, self.targets)
        return sums * self.weights.to(sums.dtype)


def _begin_moments(progress: _SlotProgress, size: int, old: dict[str, torch.Tensor] | None) -> None:
    """Set Adam's state to zeros [size], in the tensors of `old` if they have that size.

    It is allocated here rather than at the first step, so that no step runs out of memory after it has begun to change
    weights.
    """
    weights = progress.weights
    if old is None or len(old["exp_avg"]) != size:
        moments = {name: weights.new_zeros(size) for name in ("exp_avg", "exp_avg_sq")}
    else:
        moments = {name: old[name].zero_() for name in ("exp_avg", "exp_avg_sq")}
    step = torch.zeros((), dtype=torch.float32, device=weights.device if weights.is_cuda else "cpu")
    progress.optimizer.state[weights] = {"step": step, **moments}


def _norm(gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The L2 norm of `gradient` [P] in `dtype`, as the norm of the norms of short chunks: summed up sequentially on a
    CPU, millions of squares lose a thousandth in float32."""
    whole = len(gradient) // _NORM_CHUNK * _NORM_CHUNK
    chunks = torch.linalg.vector_norm(gradient[:whole].view(-1, _NORM_CHUNK), dim=1, dtype=dtype)
    rest = torch.linalg.vector_norm(gradient[whole:], dtype=dtype)
    return torch.linalg.vector_norm(torch.cat([chunks, rest.view(1)]))
