"""Evaluations of a model in training: its held-out loss, and metrics of its predictions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from arcft.memory import is_out_of_memory, release_memory
from arcft.models.sharding import Strategy, gathered_weights
from arcft.text.tokens import Example
from arcft.training import collectives
from arcft.training.batches import Grouping
from arcft.training.compiling import not_compiled
from arcft.training.loss import summed_cross_entropy

MoreMetrics = Callable[[nn.Module, int], Mapping[str, float] | None]
"""Called as `more_metrics(model, step)`; None if it was asked to stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What evaluations of a run measure. They leave the random numbers of training alone."""

    model: PreTrainedModel | peft.PeftModel
    examples: Sequence[Example]
    """Held-out examples for `eval_loss`; empty for none."""

    grouping: Grouping
    batch_size: int
    """Examples in a forward pass, at most."""

    more_metrics: MoreMetrics | None
    sharding: Strategy | None
    """How `model` was sharded; None if it was not."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure."""
        return not self.examples and self.more_metrics is None

    def measure(self, step: int, autocast: contextlib.AbstractContextManager[object]) -> dict[str, float] | None:
        """`eval_loss`, nats per supervised token, and the metrics of `more_metrics` as `eval_NAME`; None if that was
        asked to stop. `step` is the number of optimizer steps so far."""
        metrics: dict[str, float] = {}
        self.model.eval()
        kept_random = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        whole_model = gathered_weights(self.model, self.sharding)
        with kept_random, whole_model, torch.no_grad(), autocast, not_compiled(self.model):
            if self.examples:
                metrics["eval_loss"] = mean_loss(self.model, self.examples, self.grouping, batch_size=self.batch_size)
            if self.more_metrics is not None:
                more = self.more_metrics(self.model, step)
                if more is None:
                    return None
                metrics |= {f"eval_{name}": value for name, value in more.items()}
        return metrics


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], grouping: Grouping, *, batch_size: int) -> float:
    """The mean cross entropy in nats over all supervised tokens of `examples`.

    It does not depend on how they are batched: at most `batch_size` examples at a time, in groups of similar length
    that need little padding. Ranks divide the groups, and all get the result.
    """
    groups = grouping.groups(examples, batch_size)

    def own() -> list[tuple[float, int]]:
        return [_loss_and_tokens(model, group, grouping) for group in collectives.deal(groups)]

    losses = collectives.undeal(collectives.together(own))
    return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)


def _loss_and_tokens(model: nn.Module, group: Sequence[Example], grouping: Grouping) -> tuple[float, int]:
    """The summed cross entropy of a group and its supervised tokens; in halves where memory runs out."""
    device = next(model.parameters()).device
    try:
        batch = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in grouping.collate(group).items()
        }
        loss, tokens = summed_cross_entropy(model, batch)
        return loss.item(), int(tokens)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(group) == 1:
            raise
        release_memory(error)
    middle = len(group) // 2
    halves = [_loss_and_tokens(model, half, grouping) for half in (group[:middle], group[middle:])]
    return sum(loss for loss, _ in halves), sum(tokens for _, tokens in halves)
