"""Which problems: what the data of every kind have in common. Options: conf/data/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

HELD_OUT = "held_out"
"""The `name` of data that stand for the problems that a checkpoint's run held out."""


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Problems of one kind, selected, and split into those trained on and those held out. A kind brings the options."""

    options_are_files: ClassVar[bool] = False
    renamed: ClassVar[dict[str, str]] = {"source": "name"}

    only_trained_on: ClassVar[str] = ""
    """What to evaluate on instead, for data that can only be trained on; empty for others."""

    kind: str
    """The kind of problem, which decides what else there is to choose here."""

    name: str
    """Where problems come from, among the kind's options."""

    view: Literal["test", "leave_one_out"] = "test"
    """What is learned: the tests, or each demonstration from the others (the tests' answers are never read)."""

    task_ids: list[str] | str | None = None
    """Only these problems; a list of quoted ids, or the path of a text file with one id a line."""

    exclude: list[str] | str = dataclasses.field(default_factory=list)
    """Without these problems, in every source, and without the pools of their names; written as task_ids."""

    disjoint_from: list[str] = dataclasses.field(default_factory=list)
    """For training: sets that no problem trained on may share anything with, else the run is refused; short names or
    paths, as the kind has them."""

    limit: int | None = None
    """At most this many problems, after a shuffle with `seed`."""

    max_tokens: int | None = None
    """Only problems whose prompt and longest answer, un-augmented, take at most this many tokens."""

    held_out: float = 0.0
    """For training: problems kept for validation; a share below 1, or a number of problems."""

    seed: int = 0
    """Seed of the shuffle behind `limit` and `held_out`; apart from training.seed, so seeds share one split."""

    @property
    def is_held_out(self) -> bool:
        """Whether these are the problems that a checkpoint's run held out."""
        return self.name == HELD_OUT

    def with_paths(self, absolute: Callable[[str], str]) -> Self:
        """These data with `absolute` applied to every path of a file or folder, but for those in `disjoint_from`."""
        ids = {"task_ids": self.task_ids, "exclude": self.exclude}
        files: dict[str, Any] = {name: absolute(value) for name, value in ids.items() if isinstance(value, str)}
        return dataclasses.replace(self, **files)

    def problems(self) -> Iterator[str]:
        if self.view == "leave_one_out" and self.held_out:
            yield "data.held_out has no effect with data.view=leave_one_out, which holds out the tests; set it to 0"
        if self.is_held_out and self.held_out:
            yield f"data.held_out={self.held_out} has no effect with data.name=held_out; set it to 0"
        if self.limit is not None and self.limit < 1:
            yield f"data.limit={self.limit}: at least 1, or null for all tasks"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"data.max_tokens={self.max_tokens}: at least 1, or null for no limit"
        if self.held_out < 0 or (self.held_out > 1 and self.held_out != int(self.held_out)):
            yield f"data.held_out={self.held_out}: a share from 0 to 1, or a whole number of tasks"
