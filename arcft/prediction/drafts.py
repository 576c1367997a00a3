"""Draft tokens for speculative decoding, from earlier answers to the same test."""

from __future__ import annotations

from collections.abc import Sequence

from arcft.prediction.prompts import AugmentedPrompt, completions_for
from arcft.protocols import Answer, TestKey
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import vote
from arcft.text.builder import ExampleBuilder

_FIRST = 8
"""Where some of a test's prompts are completed before the others, they are one in this number, at least one."""


class DraftSource:
    """Drafts the most frequent answer so far, varied as the prompt's problem is; before there is one, what the format
    drafts without a model. Tests are independent of each other."""

    def __init__(self, builder: ExampleBuilder) -> None:
        self._builder = builder
        self._known: dict[TestKey, list[Prediction]] = {}

    def add(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            self._known.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)

    def draft(self, prompt: AugmentedPrompt) -> list[int] | None:
        """A likely completion; None where there is no draft for its test."""
        candidates = vote(self._known.get(prompt.test, []))
        answer: Answer
        if candidates:
            answer = candidates[0].answer
        else:
            drafted = self._builder.format.draft(prompt.problem, prompt.test_index)
            if drafted is None:
                return None
            answer = drafted
        return completions_for(self._builder, prompt, [answer])[0]


def before_drafting(
    builder: ExampleBuilder, prompts: Sequence[AugmentedPrompt], places: Sequence[int], batch_size: int
) -> list[int]:
    """Those of `places` in `prompts` that come first, so that there is something to draft: a few of each test, in their
    order.

    If a test's prompts fit one batch all come first, unless the format drafts its answer: waiting for the answer to one
    takes as many forward passes as completing them all.
    """
    tests: dict[TestKey, list[int]] = {}
    for place in places:
        tests.setdefault(prompts[place].test, []).append(place)
    first = []
    for own in tests.values():
        prompt = prompts[own[0]]
        waits = len(own) > batch_size or builder.format.draft(prompt.problem, prompt.test_index) is not None
        first += own[: min(batch_size, max(1, len(own) // _FIRST))] if waits else own
    return first
