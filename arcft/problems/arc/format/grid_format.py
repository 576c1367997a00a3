"""Tasks as prompts and grids as completions: the words around the grids, and the way back."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.problems.arc.config.encoder import EncoderConfig
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.format.encoders import GridEncoder, build_encoder
from arcft.problems.arc.format.evenness import check_uneven_tokens
from arcft.problems.arc.format.grammar import GridGrammar, trial_grids
from arcft.problems.arc.questions import GridQuestion, as_grid_question, ask_output, shorten
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, GridAnswer, Pair, as_grid_answer, as_task
from arcft.protocols import Answer, ClosedTexts, Problem, PromptText, Question, TokenCodec

KEPT = 0.8
"""Minimum share of the demonstrations' cells that keep their colour for the test input to be a draft of the output. 42%
of ARC-1's evaluation tests pass; their outputs keep 88% of the input's cells."""


_MANY = 100
"""Demonstrations of a trial question: more than a task has, so that every number of one is written."""


class GridFormat:
    """Writes questions about grids for training and prediction alike, and reads grids back (a ProblemFormat)."""

    def __init__(self, config: PromptConfig, encoder: GridEncoder, *, cells_are_tokens: bool = False) -> None:
        """`cells_are_tokens`: every cell takes a token at least, so a question with too many cells need not be written
        to know that it is too long."""
        self.config = config
        self.encoder = encoder
        self.cells_are_tokens = cells_are_tokens

    def question(self, problem: Problem, test_index: int) -> GridQuestion:
        return ask_output(as_task(problem), test_index)

    def render(self, question: Question) -> PromptText:
        """The turns of `question`. Demonstrations are numbered from 1."""
        asked = as_grid_question(question)
        output = asked.kind == "output"
        user = (self.config.intro if output else self.config.input_intro).format()
        template = self.config.demonstration if output else self.config.input_demonstration
        spans = []
        for number, pair in enumerate(asked.demonstrations, 1):
            values = {"number": str(number), "input": self.encoder.to_text(pair.input)}
            if output:
                assert pair.output is not None  # Task has checked it
                values["output"] = self.encoder.to_text(pair.output)
            user, span = _append(user, template, values, "output" if output else "input")
            spans.append(span)
        if output:
            assert asked.query is not None
            user += self.config.test.format(input=self.encoder.to_text(asked.query))
        else:
            user += self.config.input_test.format()
        return PromptText(
            system=self.config.system.format(),
            user=user,
            opener=(self.config.answer if output else self.config.input_answer).format() + self.encoder.opener,
            completion="" if asked.answer is None else self._text(asked.answer),
            output_spans=tuple(spans),
        )

    def completion(self, answer: Answer) -> str:
        """The text of the grid without the encoder's opener."""
        return self._text(as_grid_answer(answer).grid)

    def parse(self, completion: str) -> GridAnswer:
        """The grid in what a model wrote after the opener; raise GridParseError if it is not exactly a grid."""
        return GridAnswer(self.encoder.to_grid(self.encoder.opener + completion))

    def shorten(self, question: Question) -> GridQuestion | None:
        return shorten(as_grid_question(question))

    def min_tokens(self, question: Question) -> int:
        return as_grid_question(question).num_cells if self.cells_are_tokens else 0

    def shown_answers(self, question: Question) -> list[GridAnswer]:
        pairs = as_grid_question(question).demonstrations
        return [GridAnswer(pair.output) for pair in pairs if pair.output is not None]

    def likely_answers(self, question: Question) -> list[GridAnswer]:
        """The outputs shown, and the test input: keeping a 30x30 grid's room free would cost small contexts most of
        their demonstrations."""
        query = as_grid_question(question).query
        return self.shown_answers(question) + ([] if query is None else [GridAnswer(query)])

    def longest_completions(self) -> list[str]:
        """30x30 grids: each colour alone and a random grid, since cells may take a varying number of tokens."""
        return [self._text(grid) for grid in _largest_grids()]

    def draft(self, problem: Problem, test_index: int) -> GridAnswer | None:
        """The test input, where the demonstrations change little of theirs."""
        task = as_task(problem)
        return GridAnswer(task.test[test_index].input) if _changes_little(task.train) else None

    def closed_texts(self) -> ClosedTexts:
        """Questions of both kinds about grids of all shapes and neighbours. Grids are written in digits, symbols and
        punctuation, which mix; the letters in them only come in fixed words."""
        grids = [*trial_grids({}), *_numbered_grids()]
        texts = map(self.encoder.to_text, grids)
        characters = {sign for text in texts for sign in text if not (sign.isascii() and sign.isalpha())}
        return ClosedTexts(
            prompts=[self.render(question) for question in _trial_questions(grids)],
            characters="".join(sorted(characters | set(string.digits))),
        )

    def grammar(self, tokens: TokenCodec) -> GridGrammar:
        return GridGrammar(self.encoder, tokens, name=_name(tokens.tokenizer))

    def _text(self, grid: Grid) -> str:
        return self.encoder.to_text(grid).removeprefix(self.encoder.opener)


def grid_format(encoder: EncoderConfig, prompt: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> GridFormat:
    """The format that the config groups `encoder` and `prompt` describe.

    Raise EncoderError for an encoder that can't be built, and UnevenTokensError where the tokenizer merges or splits
    cells, unless encoder.allow_uneven_tokens is set.
    """
    built = build_encoder(encoder.grid)
    check_uneven_tokens(tokenizer, built, allow=encoder.allow_uneven_tokens, name=_name(tokenizer))
    return GridFormat(prompt, built, cells_are_tokens=not encoder.allow_uneven_tokens)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path) or "tokenizer"


def _largest_grids() -> Iterator[Grid]:
    for color in range(NUM_COLORS):
        yield np.full((MAX_SIDE, MAX_SIDE), color, dtype=np.int8)
    yield np.random.default_rng(0).integers(0, NUM_COLORS, (MAX_SIDE, MAX_SIDE), dtype=np.int8)


def _numbered_grids() -> Iterator[Grid]:
    """Every number of rows and of columns, in every place where a shape has it."""
    for side in range(1, MAX_SIDE + 1):
        for shape in ((side, side), (side, 1), (1, side)):
            yield np.zeros(shape, dtype=np.int8)


def _trial_questions(grids: Sequence[Grid]) -> Iterator[GridQuestion]:
    """Each of `grids` as an answer, its first and last rows in every other part of a question, and many demonstrations.
    The rows between them meet no words."""
    cell = np.zeros((1, 1), dtype=np.int8)
    many = (Pair(cell, cell),) * _MANY
    for grid in grids:
        edges = np.concatenate([grid[:2], grid[-2:]])
        yield GridQuestion("trial", (Pair(edges, edges),), edges, grid, "output")
        yield GridQuestion("trial", (Pair(edges, edges),), None, edges, "input")
    for kind in ("output", "input"):
        yield GridQuestion("trial", many, cell if kind == "output" else None, cell, kind)


def _changes_little(demonstrations: Sequence[Pair]) -> bool:
    """Whether the outputs have the shapes of their inputs, and KEPT of their cells."""
    pairs = [(pair.input, pair.output) for pair in demonstrations if pair.output is not None]
    if not pairs or any(given.shape != output.shape for given, output in pairs):
        return False
    kept = sum(int((given == output).sum()) for given, output in pairs)
    return kept >= KEPT * sum(given.size for given, _ in pairs)


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
