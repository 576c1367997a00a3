"""The questions that a model is asked about a task."""

from __future__ import annotations

import dataclasses
from typing import Literal

from arcft.problems.arc.task import Grid, Pair, Task, TaskError
from arcft.protocols import Question


@dataclasses.dataclass(frozen=True, eq=False)
class GridQuestion:
    """Demonstrations, what is asked beside them and, where it is known, the answer."""

    task_id: str
    demonstrations: tuple[Pair, ...]
    query: Grid | None
    """The test input; None for kind `input`."""

    answer: Grid | None
    """The output for the query or, for kind `input`, one more input; None where it is not known."""

    kind: Literal["output", "input"]
    """`output`: give the output for the query. `input`: give one more input like the demonstrations' inputs."""

    @property
    def num_cells(self) -> int:
        """Cells of all grids that are written for the question and its answer."""
        grids = [pair.input for pair in self.demonstrations] + [self.query, self.answer]
        if self.kind == "output":
            grids += [pair.output for pair in self.demonstrations]
        return sum(grid.size for grid in grids if grid is not None)


def ask_output(task: Task, test_index: int) -> GridQuestion:
    """The puzzle as intended: from the demonstrations and a test input (counted from 0) to the test output."""
    pair = _test_pair(task, test_index)
    return GridQuestion(task.id, task.train, pair.input, pair.output, "output")


def ask_input(task: Task, test_index: int) -> GridQuestion:
    """From the demonstrations' inputs to one more input, that of test `test_index`: an auxiliary objective of arc24."""
    return GridQuestion(task.id, task.train, None, _test_pair(task, test_index).input, "input")


def shorten(question: GridQuestion) -> GridQuestion | None:
    """The question without its last demonstration; None if only one is left, for without any there is no puzzle."""
    if len(question.demonstrations) < 2:
        return None
    return dataclasses.replace(question, demonstrations=question.demonstrations[:-1])


def as_grid_question(question: Question) -> GridQuestion:
    """`question` as the GridQuestion that it is; raise TypeError for a question of another kind."""
    if not isinstance(question, GridQuestion):
        raise TypeError(f"{type(question).__name__} is not a GridQuestion")
    return question


def _test_pair(task: Task, test_index: int) -> Pair:
    if not 0 <= test_index < len(task.test):
        raise TaskError(f"task {task.id}: there is no test {test_index}; it has {len(task.test)}, counted from 0")
    return task.test[test_index]
