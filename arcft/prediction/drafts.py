"""What a test's earlier prompts came to, as guesses for the later ones; for the first ones its input, if tasks like it
change little."""

from __future__ import annotations

from collections.abc import Sequence

from arcft.prediction.prompts import AugmentedPrompt, completions_for
from arcft.problems.arc.format.examples import ExampleBuilder
from arcft.problems.arc.task import Task
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.voting import vote

_FIRST = 8
"""Where some of a test's prompts are asked before the others, it is one in so many, and one at least."""

_KEPT = 0.8
"""The share of the demonstrations' cells that have to stay as they are for the input to be a guess. Of ARC-1's
evaluation tests that is so in 42%, whose outputs keep 88% of the input's cells."""


class DraftSource:
    """Guesses the most frequent answer so far, turned as the prompt's task is; as long as there is none, the test's
    input, where demonstrations change little of theirs. Tests know nothing of each other."""

    def __init__(self, builder: ExampleBuilder) -> None:
        self._builder = builder
        self._known: dict[TestKey, list[Prediction]] = {}

    def add(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            self._known.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)

    def guess(self, prompt: AugmentedPrompt) -> list[int] | None:
        """What the completion may be; None where nothing is known of its test."""
        candidates = vote(self._known.get(prompt.test, []))
        if candidates:
            grid = candidates[0].grid
        elif _changes_little(prompt.task):
            grid = prompt.task.test[prompt.test_index].input
        else:
            return None
        return completions_for(self._builder, prompt, [grid])[0]


def before_guessing(asked: Sequence[AugmentedPrompt], places: Sequence[int], batch_size: int) -> list[int]:
    """Those of `places` in `asked` that come first, to have something to guess: a few of each test, in their order.

    Of a test whose prompts fit one batch all come first, unless its input is a guess: to wait for the answer to one
    takes as many passes as to write them all.
    """
    tests: dict[TestKey, list[int]] = {}
    for place in places:
        tests.setdefault(asked[place].test, []).append(place)
    first = []
    for own in tests.values():
        waits = len(own) > batch_size or _changes_little(asked[own[0]].task)
        first += own[: min(batch_size, max(1, len(own) // _FIRST))] if waits else own
    return first


def _changes_little(task: Task) -> bool:
    """Whether the demonstrations' outputs have the shapes of their inputs, and most of their cells."""
    pairs = [(pair.input, pair.output) for pair in task.train if pair.output is not None]
    if not pairs or any(given.shape != output.shape for given, output in pairs):
        return False
    kept = sum(int((given == output).sum()) for given, output in pairs)
    return kept >= _KEPT * sum(given.size for given, _ in pairs)
