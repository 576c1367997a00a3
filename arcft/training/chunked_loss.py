"""Cross entropy without the logits of all tokens at once.

Logits of 152,000 entries for 8,000 supervised tokens take 4.5 GiB in float32, and their gradient as much. Here a chunk
of tokens at a time goes through the output layer and, in the same forward pass, back again, so that only the gradient
of the layer's input is kept: Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training".
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from arcft.models.selected_logits import HeadTap, selected_logits
from arcft.text.tokens import IGNORED

Transform = Callable[[torch.Tensor], torch.Tensor]
"""What a model does to the output of its output layer."""

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**26}
"""Logits in a chunk, by type of device: as few as keep it busy. On a CPU, chunks half as large are a tenth slower."""

_PROBED_TOKENS = 8

_transforms: weakref.WeakKeyDictionary[nn.Module, Transform | None] = weakref.WeakKeyDictionary()


def cross_entropy_sums(
    model: Any, inputs: Mapping[str, Any], places: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Run `model` and sum the cross entropy over each row of `places`.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        inputs: Arguments of its forward pass, with `input_ids` [batch, length] among them.
        places: int64 [rows, selected], indices into the flattened batch: row * length + column.
        targets: int64 [rows, selected], the token that follows each place, IGNORED for none.

    Returns:
        [rows] in nats, float32, or float64 for a float64 model; differentiable once.
    """
    head = model.get_output_embeddings()
    limit = CHUNK_LOGITS.get(places.device.type, CHUNK_LOGITS["cpu"])
    # Not its out_features: PEFT swaps them where it copies a tied head.
    width = 0 if head is None else len(head.weight)
    if places.numel() * width > limit and _splits(head, len(places)):
        transform = _transform(model, head, inputs["input_ids"])
        if transform is not None:
            with _LossTap(head, places, targets, transform, max(1, limit // width)) as tap:
                model(**inputs)
            assert tap.losses is not None
            return tap.losses
    logits = selected_logits(model, inputs, places)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    each = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return each.view_as(targets).sum(dim=1)


def probe(model: Any) -> None:
    """Find out now what the model does after its output layer, which takes a forward pass, rather than at the first
    batch that is large enough: the ranks of a sharded model make the same passes."""
    head = model.get_output_embeddings()
    if head is not None:
        device = next(model.parameters()).device
        _transform(model, head, torch.zeros(1, _PROBED_TOKENS, dtype=torch.int64, device=device))


def _splits(head: nn.Module, rows: int) -> bool:
    """Whether the layer treats tokens one by one, and its trained weights, if any, are found among its parameters."""
    if isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return rows == 1
    trained = any(parameter.requires_grad for parameter in head.parameters())
    return isinstance(head, nn.Linear) and (rows == 1 or not trained)


def _transform(model: nn.Module, head: nn.Module, input_ids: torch.Tensor) -> Transform | None:
    """What the model does after its output layer, tried on a few tokens; None if it is not one of the known ways."""
    if model not in _transforms:
        candidate = _configured_transform(model)
        devices = [input_ids.device] if input_ids.is_cuda else []
        beginnings = input_ids[:, :_PROBED_TOKENS]
        places = torch.arange(beginnings.shape[1], device=input_ids.device)[None]
        with torch.random.fork_rng(devices), torch.no_grad(), HeadTap(head, places) as tap:
            logits = model(input_ids=beginnings, use_cache=False).logits
        known = tap.output is not None and torch.equal(candidate(tap.output).to(logits.dtype), logits)
        _transforms[model] = candidate if known else None
    return _transforms[model]


def _configured_transform(model: Any) -> Transform:
    """The scale or cap of logits that the config names: Gemma's, Cohere's, Granite's; otherwise nothing is done."""
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if factor is not None:
        return lambda logits: logits * factor
    if divisor is not None:
        return lambda logits: logits / divisor
    return lambda logits: logits


class _LossTap:
    """Computes losses from the input of a model's output layer while the context is open; the layer itself gets none.

    This happens within the model's forward pass, where sharded weights are whole.
    """

    def __init__(
        self, head: nn.Module, places: torch.Tensor, targets: torch.Tensor, transform: Transform, chunk: int
    ) -> None:
        self.losses: torch.Tensor | None = None
        self._head = head
        self._places, self._targets = places, targets
        self._transform, self._chunk = transform, chunk

    def __enter__(self) -> _LossTap:
        self._handle = self._head.register_forward_pre_hook(self._before)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _before(self, head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].flatten(0, 1)[self._places]
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.losses = _Losses.apply(
            hidden, self._targets, head, self._transform, self._chunk, torch.is_grad_enabled(), *trained
        )
        return (hidden[:, :0], *args[1:])


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: nn.Module,
        transform: Transform,
        chunk: int,
        differentiable: bool,
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        flat, flat_targets = hidden.flatten(0, 1), targets.flatten()
        wanted = differentiable and any(ctx.needs_input_grad)
        for_hidden = torch.empty_like(flat) if wanted else None
        for_trained = [torch.zeros_like(parameter) for parameter in trained] if wanted else []
        losses = []
        for start in range(0, len(flat), chunk):
            part = slice(start, start + chunk)
            loss, own, others = _chunk(flat[part], flat_targets[part], head, transform, trained, wanted)
            losses.append(loss)
            if for_hidden is not None and own is not None:
                for_hidden[part] = own
            for total, other in zip(for_trained, others, strict=True):
                if other is not None:
                    total += other
        if for_hidden is not None:
            ctx.save_for_backward(for_hidden.view_as(hidden), *for_trained)
        return torch.cat(losses).view_as(targets).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        for_hidden, *for_trained = ctx.saved_tensors
        # Trained weights come with one row only.
        return (
            for_hidden * gradient[:, None, None].to(for_hidden.dtype),
            *[None] * 5,
            *(one * gradient[0].to(one.dtype) for one in for_trained),
        )


def _chunk(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: nn.Module,
    transform: Transform,
    trained: Sequence[torch.Tensor],
    wanted: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, Sequence[torch.Tensor | None]]:
    """Losses [tokens] of hidden states [tokens, hidden size]; if wanted, also the gradients of their sum for hidden
    states and trained weights."""
    with torch.set_grad_enabled(wanted):
        hidden = hidden.detach().requires_grad_(wanted)
        # Not the module itself: its hooks, this one among them, expect whole batches.
        logits = transform(head.forward(hidden))
    values = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    log_probabilities = values.log_softmax(dim=-1)
    supervised = targets != IGNORED
    index = targets.clamp(min=0)[:, None]
    losses = -log_probabilities.gather(1, index).squeeze(1) * supervised
    if not wanted:
        return losses, None, ()
    # The gradient with respect to logits: probabilities, minus 1 at the target.
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, index, gradient.new_full(index.shape, -1.0))
    if trained:
        gradient.mul_(supervised[:, None])
    own, *others = torch.autograd.grad(logits, [hidden, *trained], gradient.to(logits.dtype), allow_unused=True)
    return losses, own.mul_(supervised[:, None]), others
