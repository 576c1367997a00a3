"""What a test's earlier prompts came to, as guesses for the later ones."""

from __future__ import annotations

from collections.abc import Sequence

from arcft.inference.augmented import AugmentedPrompt, completions_for
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.voting import vote
from arcft.text.examples import ExampleBuilder

_FIRST = 8
"""One in so many of a test's prompts is asked without a guess, and one at least."""


class CarriedOver:
    """Guesses the most frequent answer so far, turned as the prompt's task is. Tests know nothing of each other."""

    def __init__(self, builder: ExampleBuilder) -> None:
        self._builder = builder
        self._known: dict[TestKey, list[Prediction]] = {}

    def add(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            self._known.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)

    def guess(self, prompt: AugmentedPrompt) -> list[int] | None:
        """What the completion may be; None where nothing is known of its test."""
        candidates = vote(self._known.get(prompt.test, []))
        return completions_for(self._builder, prompt, [candidates[0].grid])[0] if candidates else None


def before_guessing(asked: Sequence[AugmentedPrompt], places: Sequence[int], batch_size: int) -> list[int]:
    """Those of `places` in `asked` that come first, to have something to guess: a few of each test, in their order."""
    tests: dict[TestKey, list[int]] = {}
    for place in places:
        tests.setdefault(asked[place].test, []).append(place)
    return [place for own in tests.values() for place in own[: min(batch_size, max(1, len(own) // _FIRST))]]
