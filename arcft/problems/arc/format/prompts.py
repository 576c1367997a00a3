"""The words around the grids: a problem as the turns of a conversation."""

from __future__ import annotations

import dataclasses
import string

from arcft.config.prompt import PromptConfig
from arcft.problems.arc.format.encoders import GridEncoder
from arcft.problems.arc.task import Grid
from arcft.problems.arc.views import Problem


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A problem in words: given are `system`, `user` and `opener`, asked for is `completion`."""

    system: str
    """The system turn; empty for none."""

    user: str
    """The demonstrations and the question."""

    opener: str
    """The fixed beginning of the answer: given, not asked for, in training as at inference."""

    completion: str
    """The rest of the answer; empty where the answer is not known."""

    output_spans: tuple[tuple[int, int], ...]
    """For each demonstration, where in `user` the grid stands that is of the kind asked for: first and last + 1
    character."""


class PromptBuilder:
    """Renders problems for training and for inference alike, and reads answers."""

    def __init__(self, config: PromptConfig, encoder: GridEncoder) -> None:
        self.config = config
        self.encoder = encoder

    def render(self, problem: Problem) -> PromptText:
        """The turns of `problem`. Demonstrations are numbered from 1."""
        output = problem.kind == "output"
        user = (self.config.intro if output else self.config.input_intro).format()
        template = self.config.demonstration if output else self.config.input_demonstration
        spans = []
        for number, pair in enumerate(problem.demonstrations, 1):
            values = {"number": str(number), "input": self.encoder.to_text(pair.input)}
            if output:
                assert pair.output is not None  # Task has checked it
                values["output"] = self.encoder.to_text(pair.output)
            user, span = _append(user, template, values, "output" if output else "input")
            spans.append(span)
        if output:
            assert problem.query is not None
            user += self.config.test.format(input=self.encoder.to_text(problem.query))
        else:
            user += self.config.input_test.format()
        return PromptText(
            system=self.config.system.format(),
            user=user,
            opener=(self.config.answer if output else self.config.input_answer).format() + self.encoder.opener,
            completion="" if problem.answer is None else self.completion(problem.answer),
            output_spans=tuple(spans),
        )

    def completion(self, answer: Grid) -> str:
        """What a model shall write for `answer`: its text without the encoder's opener."""
        return self.encoder.to_text(answer).removeprefix(self.encoder.opener)

    def parse(self, completion: str) -> Grid:
        """The grid of what a model wrote after `opener`; raise GridParseError if it is not exactly a grid."""
        return self.encoder.to_grid(self.encoder.opener + completion)


def _append(text: str, template: str, values: dict[str, str], marked: str) -> tuple[str, tuple[int, int]]:
    """`text` with the filled template after it, and where the value of the placeholder `marked` stands in it."""
    span = (len(text), len(text))
    for literal, name, *_ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            start = len(text)
            text += values[name]
            if name == marked:
                span = (start, len(text))
    return text, span
