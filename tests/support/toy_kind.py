"""The smallest kind of problem: reverse the word, shown a few words that are reversed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arcft.config.data import DataConfig
from arcft.protocols import (
    Answer,
    AnswerError,
    Kind,
    Overlap,
    OwnExamples,
    OwnMaterial,
    Problem,
    ProblemFormat,
    PromptText,
    QuestionSampler,
    Sources,
    TestKey,
)  # fmt: skip
from arcft.reporting.text_card import TextCard
from arcft.scoring.exact import ExactMetrics

WORDS = ("cab", "dog", "fig", "hat", "ink", "jam", "keg", "lip", "map", "net", "oak", "pub")


@dataclasses.dataclass(frozen=True)
class Word(Answer):
    text: str

    @property
    def key(self) -> str:
        return self.text

    def to_json(self) -> str:
        return self.text

    __str__ = to_json


@dataclasses.dataclass(frozen=True)
class Reversal:
    """A problem, and the question that it asks: each pair is a word and the word reversed."""

    id: str
    shown: tuple[str, ...]
    asked: str

    @property
    def answers(self) -> Sequence[Word]:
        return [Word(self.asked[::-1])]

    def without(self, index: int) -> Reversal:
        return Reversal(self.id, self.shown[:index] + self.shown[index + 1 :], self.shown[index])


class ReversalFormat(ProblemFormat):
    def question(self, problem: Any, test_index: int) -> Any:
        return problem

    def render(self, question: Any) -> PromptText:
        shown = "".join(f"{word}={word[::-1]}\n" for word in question.shown)
        return PromptText("", shown + question.asked, "=", question.asked[::-1])

    def completion(self, answer: Any) -> str:
        return answer.text

    def parse(self, completion: str) -> Word:
        if not completion.isalpha():
            raise AnswerError(f"{completion!r} is not a word")
        return Word(completion)

    def shorten(self, question: Any) -> Any:
        return dataclasses.replace(question, shown=question.shown[:-1]) if len(question.shown) > 1 else None


class ReversalQuestions(QuestionSampler, OwnExamples):
    def __init__(self, view: str) -> None:
        self.view = view

    def problems(self, item: Any, rng: np.random.Generator) -> list[Any]:
        return [item.without(index) for index in range(len(item.shown))] if self.view == "leave_one_out" else [item]

    def draw(self, problem: Any, rng: np.random.Generator) -> Any:
        return problem

    def material(self, problem: Any, *, hold_back: bool) -> OwnMaterial:
        return OwnMaterial(problem)

    def trials(self, item: Any) -> Iterable[Any]:
        return self.problems(item, np.random.default_rng(0))


class ReversalCard(TextCard):
    def demonstrations(self, problem: Any) -> list[tuple[str, str]]:
        return [(word, word[::-1]) for word in problem.shown]

    def question(self, problem: Any, test_index: int) -> str:
        return problem.asked


@dataclasses.dataclass(kw_only=True)
class Words(DataConfig):
    name: Literal["words", "held_out"]
    count: int = len(WORDS)


class ToyKind(Kind):
    name = "toy"
    configs: Mapping[str, type] = {"data": Words}
    metrics = ExactMetrics()
    card = ReversalCard()

    def load(self, data: Any) -> Sources:
        shown = (WORDS[-1], WORDS[-2], WORDS[-3])
        return [(1.0, [Reversal(word, shown, word) for word in WORDS[: data.count]])]

    def overlap(self, first: Iterable[Any], second: Iterable[Any]) -> Overlap:
        asked = [item.asked for item in first]
        return Overlap(same=tuple((item.asked, item.asked) for item in second if item.asked in asked))

    def fingerprint(self, items: Iterable[Any]) -> str:
        return hashlib.sha256(repr([dataclasses.astuple(item) for item in items]).encode()).hexdigest()

    def answer_from_json(self, value: Any) -> Word | None:
        return None if value is None else Word(value)

    def format(self, encoder: Any, prompt: Any, tokenizer: Any, *, positions: str) -> Any:
        return ReversalFormat(), None

    def sampler(self, augmentation: Any, format: ProblemFormat, *, view: str) -> QuestionSampler:
        return ReversalQuestions(view)

    def own_examples(self, format: ProblemFormat) -> OwnExamples:
        return ReversalQuestions("leave_one_out")

    def write_submission(self, path: Path, problems: Sequence[Problem], attempts: Mapping[TestKey, Any]) -> None:
        path.write_text(json.dumps({one.id: [word.text for word in attempts[one.id, 0]] for one in problems}))
