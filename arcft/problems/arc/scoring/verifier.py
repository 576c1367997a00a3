"""A verifier that needs no model: it judges a candidate by what the demonstrations share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from arcft.problems.arc.task import NUM_COLORS, Grid, Pair, Task, as_grid_answer, as_task
from arcft.protocols import Answer, Problem, Verdict


class Consistency:
    """The share of the properties common to all demonstrations that a candidate has too.

    A property compares an output with its input and with the other demonstrations: for a demonstration these are the
    rest, so what it shares with itself alone proves nothing. Where the demonstrations have nothing in common, every
    candidate gets 1.
    """

    def __call__(self, problem: Problem, test_index: int, answer: Answer) -> Verdict:
        """The verdict on `answer` as the output of test `test_index` (from 0); the true output is not looked at."""
        task, candidate = as_task(problem), as_grid_answer(answer).grid
        shared = shared_properties(task)
        query = task.test[test_index].input
        fails = [name for name in shared if not PROPERTIES[name](query, candidate, task.train)]
        score = 1 - len(fails) / len(shared) if shared else 1.0
        return Verdict(score, {"holds": [name for name in shared if name not in fails], "fails": fails})


@functools.lru_cache(maxsize=1024)
def shared_properties(task: Task) -> tuple[str, ...]:
    """Names of the PROPERTIES that all demonstrations of `task` have."""
    return tuple(
        name
        for name, holds in PROPERTIES.items()
        if all(
            holds(pair.input, _output(pair), task.train[:place] + task.train[place + 1 :])
            for place, pair in enumerate(task.train)
        )
    )


Property = Callable[[Grid, Grid, Sequence[Pair]], bool]
"""Whether an output has it, given its input and the other demonstrations."""


def _same_shape(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return output.shape == given.shape


def _constant_shape(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return bool(others) and all(_output(pair).shape == output.shape for pair in others)


def _constant_ratio(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    """Of the sides, where they are not those of the input; in whole numbers, so that thirds are exact."""
    return (
        bool(others)
        and output.shape != given.shape
        and all(
            side * other_given == other_side * own_given
            for pair in others
            for side, own_given, other_side, other_given in zip(
                output.shape, given.shape, _output(pair).shape, pair.input.shape, strict=True
            )
        )
    )


def _no_new_color(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return not (_colors(output) & ~_colors(given)).any()


def _every_color(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return not (_colors(given) & ~_colors(output)).any()


def _known_colors(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    known = _colors(given)
    for pair in others:
        known = known | _colors(_output(pair))
    return not (_colors(output) & ~known).any()


def _constant_colors(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    own = _colors(output)
    return bool(others) and all(np.array_equal(_colors(_output(pair)), own) for pair in others)


def _constant_color_count(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    own = _colors(output).sum()
    return bool(others) and all(_colors(_output(pair)).sum() == own for pair in others)


def _same_counts(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return np.array_equal(_counts(given), _counts(output))


def _drawn_stays(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return given.shape == output.shape and bool((output == given)[given != 0].all())


def _background_stays(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return given.shape == output.shape and not output[given == 0].any()


def _left_right(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return np.array_equal(output, output[:, ::-1])


def _top_bottom(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return np.array_equal(output, output[::-1])


def _diagonal(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return np.array_equal(output, output.T)


def _part_of_input(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return output.shape != given.shape and _is_part(output, given)


def _holds_input(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return output.shape != given.shape and _is_part(given, output)


def _changed(given: Grid, output: Grid, others: Sequence[Pair]) -> bool:
    return not np.array_equal(given, output)


PROPERTIES: dict[str, Property] = {
    "the input's shape": _same_shape,
    "the other outputs' shape": _constant_shape,
    "sides in a constant ratio to the input's": _constant_ratio,
    "no colour that the input doesn't have": _no_new_color,
    "every colour of the input": _every_color,
    "no colour that is new to input and other outputs": _known_colors,
    "the other outputs' colours": _constant_colors,
    "as many colours as the other outputs": _constant_color_count,
    "as many cells of each colour as the input": _same_counts,
    "what is drawn in the input stays": _drawn_stays,
    "the input's background stays": _background_stays,
    "symmetric from left to right": _left_right,
    "symmetric from top to bottom": _top_bottom,
    "symmetric about the diagonal": _diagonal,
    "a part of the input": _part_of_input,
    "holds the input": _holds_input,
    "not the input itself": _changed,
}
"""What outputs may have in common, by the words in which a report names it. Background is colour 0."""


def _output(pair: Pair) -> Grid:
    assert pair.output is not None  # Task has checked it of demonstrations
    return pair.output


def _counts(grid: Grid) -> NDArray[np.int64]:
    return np.bincount(grid.ravel(), minlength=NUM_COLORS)


def _colors(grid: Grid) -> NDArray[np.bool_]:
    """[NUM_COLORS], whether the grid has the colour."""
    return _counts(grid) > 0


def _is_part(part: Grid, whole: Grid) -> bool:
    if part.shape[0] > whole.shape[0] or part.shape[1] > whole.shape[1]:
        return False
    return bool((sliding_window_view(whole, part.shape) == part).all(axis=(2, 3)).any())
