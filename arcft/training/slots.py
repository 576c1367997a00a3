"""Train several stacked adapters at once, each as if it were alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from arcft.models.stacked_lora import StackedLora
from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import collate
from arcft.training.finite import SMALLEST_SCALE

# Of loss scaling in float16: where each task begins.
_FIRST_SCALE = 2.0**14
_STRETCH = 4096


@dataclasses.dataclass(frozen=True)
class SlotStep:
    """What one optimizer step of one slot was like."""

    loss: float
    """Mean over the slot's supervised tokens, nats, before the step."""

    gradient_norm: float
    """Before clipping."""

    tokens: int
    """Supervised tokens."""

    finite: bool
    """False where loss or gradient was not a finite number; the slot was then not updated."""


@dataclasses.dataclass
class _Course:
    """Where a slot is in the training of its task."""

    learning_rate: float
    factor: Callable[[int], float]
    weights: nn.Parameter
    """The slot's master weights during an update, empty otherwise: slots may be allocated anew in between."""

    optimizer: torch.optim.AdamW
    steps: int = 0
    loss_scale: float = 1.0


class SlotTrainer:
    """Optimizer steps on the slots of `stacked`: one pass for all, but each slot has its own Adam, learning rate,
    clipping and step count, so that it is trained as it would be alone."""

    def __init__(
        self, stacked: StackedLora, *, pad_id: int, max_grad_norm: float, positions: Positions | None = None
    ) -> None:
        self.stacked = stacked
        self.pad_id = pad_id
        self.max_grad_norm = max_grad_norm
        self.positions = positions
        self.gradient_checkpointing = False
        """Compute activations anew in the backward pass instead of keeping them; may be set between steps."""
        self._checkpointed = False
        layers = stacked.model.modules()
        self._layers = [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]
        self._courses: dict[int, _Course] = {}
        self._empty = stacked.master(0).new_empty(0)
        self._widened = self._empty
        """Room for a gradient in the master's dtype, where the compute dtype is another."""

    def begin(self, slot: int, *, learning_rate: float, factor: Callable[[int], float]) -> None:
        """Prepare the slot for another task: START, a new AdamW without weight decay, step 0.

        Step i has the learning rate `learning_rate` * `factor`(i).
        """
        self.stacked.reset(slot)
        old = self._courses.pop(slot, None)
        weights = nn.Parameter(self._empty, requires_grad=False)
        fused = weights.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0, fused=fused)
        course = _Course(learning_rate, factor, weights, optimizer)
        if self.stacked.compute_dtype == torch.float16:
            course.loss_scale = _FIRST_SCALE
        _begin_moments(course, self.stacked.size, None if old is None else old.optimizer.state[old.weights])
        self._courses[slot] = course

    def step(self, examples: Sequence[Sequence[Example]], first: int = 0) -> list[SlotStep]:
        """One step of the slots from `first` on; `examples`[i] are those of slot `first` + i, equally many for each.

        The loss is the sum over slots of the mean over the slot's supervised tokens. Where memory runs out, the error
        is passed on, and everything is as before the step.
        """
        slots = range(first, first + len(examples))
        batch = _Batch(examples, self.pad_id, self.positions, self.stacked.device)
        self._follow(slots)
        losses, norms = self._gradients(batch, slots)
        results = []
        for slot, loss, norm, tokens in zip(slots, losses, norms, batch.counts, strict=True):
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                self._update(slot, norm)
            results.append(SlotStep(loss, norm, tokens, finite))
        return results

    def loss(self, slot: int, examples: Sequence[Example]) -> float:
        """Mean loss over the supervised tokens of `examples` in nats, without a gradient."""
        total, count = 0.0, 0
        with torch.no_grad(), self.stacked.training(slot, 1):
            for example in examples:
                batch = _Batch([[example]], self.pad_id, self.positions, self.stacked.device)
                total += batch.losses(self.stacked.model).item() * batch.counts[0]
                count += batch.counts[0]
        return total / count

    def move(self, source: int, target: int) -> None:
        """Put weights, optimizer and schedule of slot `source` into slot `target`; `source` has to begin anew."""
        self.stacked.move(source, target)
        self._courses[target] = self._courses.pop(source)

    def snapshot(self, slot: int) -> torch.Tensor:
        """A copy of the slot's weights, [P]."""
        return self.stacked.master(slot).clone()

    def restore(self, slot: int, weights: torch.Tensor) -> None:
        """Put weights back that `snapshot` gave."""
        self.stacked.master(slot).copy_(weights)
        self.stacked.publish(slot)

    def _follow(self, slots: range) -> None:
        """Make sure of all memory that the updates need, as number and size of the slots may have changed."""
        for slot in [slot for slot in self._courses if slot >= self.stacked.slots]:
            del self._courses[slot]
        size = self.stacked.size
        if self.stacked.compute_dtype != self._empty.dtype and len(self._widened) != size:
            self._widened = self._empty.new_empty(size)
        for slot in slots:
            course = self._courses[slot]
            if len(course.optimizer.state[course.weights]["exp_avg"]) != size:
                # Moments of other numbers mean nothing here; the schedule goes on.
                _begin_moments(course, size, None)

    def _gradients(self, batch: _Batch, slots: range) -> tuple[list[float], list[float]]:
        """Fill the slots' gradients (times their loss scale); return losses and gradient norms without that scale."""
        model, count = self.stacked.model, len(slots)
        gradients = [self.stacked.gradient(slot) for slot in slots]
        while True:
            for gradient in gradients:
                gradient.zero_()
            scales = [self._courses[slot].loss_scale for slot in slots]
            with self.stacked.training(slots.start, count), self._checkpointing():
                losses = batch.losses(model)
                (losses * losses.new_tensor(scales)).sum().backward()
            norms = torch.stack([_norm(gradient, self._empty.dtype) for gradient in gradients])
            # The one place in a step that waits for the device.
            found = torch.stack([losses.detach().to(norms.dtype), norms]).tolist()
            overflown = [
                slot
                for slot, loss, norm, scale in zip(slots, *found, scales, strict=True)
                if scale > SMALLEST_SCALE and math.isfinite(loss) and not math.isfinite(norm)
            ]
            if self.stacked.compute_dtype != torch.float16 or not overflown:
                return found[0], [norm / scale for norm, scale in zip(found[1], scales, strict=True)]
            for slot in overflown:
                self._courses[slot].loss_scale /= 2

    def _update(self, slot: int, norm: float) -> None:
        course, gradient = self._courses[slot], self.stacked.gradient(slot)
        # As torch.nn.utils.clip_grad_norm_ has it.
        clip = min(1.0, self.max_grad_norm / (norm + 1e-6)) / course.loss_scale
        if gradient.dtype != self._empty.dtype:
            gradient = self._widened.copy_(gradient)
        if clip != 1.0:
            gradient.mul_(clip)
        course.optimizer.param_groups[0]["lr"] = course.learning_rate * course.factor(course.steps)
        course.weights.data, course.weights.grad = self.stacked.master(slot), gradient
        course.optimizer.step()
        course.weights.grad, course.weights.data = None, self._empty
        course.steps += 1
        self.stacked.publish(slot)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        if self.gradient_checkpointing != self._checkpointed:
            if self.gradient_checkpointing:
                self.stacked.model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            else:
                self.stacked.model.gradient_checkpointing_disable()
            self._checkpointed = self.gradient_checkpointing
        # Transformers checkpoints in training mode only, but below these layers that would switch dropout on.
        for layer in self._layers:
            layer.training = self._checkpointed
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False


class _Batch:
    """Examples of several slots as tensors on the model's device, and which tokens are supervised."""

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
        # The supervised places of each slot, in their order; what fills the shorter slots up has no target.
        places = supervised.int().argsort(dim=1, descending=True, stable=True)[:, : max(self.counts)]
        offsets = torch.arange(len(examples)).unsqueeze(1) * targets.shape[1]
        self.inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        self.targets = targets.gather(1, places).to(device, non_blocking=True)
        self.places = (places + offsets).to(device, non_blocking=True)
        self.weights = (1 / torch.tensor(self.counts, dtype=torch.float64)).to(device)

    def losses(self, model: nn.Module) -> torch.Tensor:
        """The mean cross entropy of each slot, [slots], nats, float32 or wider."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._gathered = False
        # The vocabulary is the widest layer, and most tokens have no target: only those that have reach the head.
        handle = None if head is None else head.register_forward_pre_hook(self._gather)
        try:
            logits = model(**self.inputs, use_cache=False).logits
        finally:
            if handle is not None:
                handle.remove()
        if not self._gathered:
            logits = logits.flatten(0, 1)[self.places]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1), self.targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        return each.view_as(self.targets).sum(dim=1) * self.weights.to(each.dtype)

    def _gather(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._gathered = True
        hidden, *others = inputs
        return hidden.flatten(0, 1)[self.places], *others


def _begin_moments(course: _Course, size: int, old: dict[str, torch.Tensor] | None) -> None:
    """Zeros [size] as Adam's state, in place where `old` has the room. Made here, not at the first step, so that no
    step can run out of memory when it has begun to change weights."""
    weights = course.weights
    if old is None or len(old["exp_avg"]) != size:
        moments = {name: weights.new_zeros(size) for name in ("exp_avg", "exp_avg_sq")}
    else:
        moments = {name: old[name].zero_() for name in ("exp_avg", "exp_avg_sq")}
    step = torch.zeros((), dtype=torch.float32, device=weights.device if weights.is_cuda else "cpu")
    course.optimizer.state[weights] = {"step": step, **moments}


def _norm(gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The norm of `gradient` [P] in `dtype`, by way of the norms of short stretches: summed up in a row on a CPU,
    millions of squares lose a thousandth in float32."""
    whole = len(gradient) // _STRETCH * _STRETCH
    stretches = torch.linalg.vector_norm(gradient[:whole].view(-1, _STRETCH), dim=1, dtype=dtype)
    rest = torch.linalg.vector_norm(gradient[whole:], dtype=dtype)
    return torch.linalg.vector_norm(torch.cat([stretches, rest.view(1)]))
