"""The builder on a format without grids: no bound of its answers, no grammar, no demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from arcft.config.inference import GreedyConfig
from arcft.config.model import ModelConfig
from arcft.models.load import load_tokenizer
from arcft.prediction.prompts import augmented_prompts
from arcft.problems.arc.augment.transforms import Identity
from arcft.problems.arc.augment.views import TransformView
from arcft.problems.arc.format.encoders import MinimalGridEncoder
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.protocols import ProblemError, PromptText
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import Tokenization


@dataclasses.dataclass(frozen=True)
class Word:
    text: str

    @property
    def key(self) -> Hashable:
        return self.text

    def to_json(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Riddle:
    id: str
    asked: str
    answers: Sequence[Word | None]


class RiddleFormat:
    """Asks for digits, one token each."""

    likely: Sequence[Word] = ()

    def question(self, problem: Riddle, test_index: int) -> tuple[str, Word | None]:
        return problem.asked, problem.answers[test_index]

    def render(self, question: tuple[str, Word | None]) -> PromptText:
        asked, answer = question
        return PromptText("", asked, "\n", "" if answer is None else answer.text)

    def completion(self, answer: Word) -> str:
        return answer.text

    def parse(self, completion: str) -> Word:
        return Word(completion)

    def shorten(self, question: Any) -> None:
        return None

    def min_tokens(self, question: Any) -> int:
        return 0

    def shown_answers(self, question: Any) -> Sequence[Word]:
        return ()

    def likely_answers(self, question: Any) -> Sequence[Word]:
        return self.likely

    def longest_completions(self) -> Sequence[str]:
        return ()

    def draft(self, problem: Riddle, test_index: int) -> None:
        return None

    def grammar(self, tokens: Any) -> None:
        return None


class Same:
    def apply(self, problem: Riddle) -> Riddle:
        return problem


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(name="tiny", path="bundled:tiny", init="random"))


def builder_of(tokenizer: PreTrainedTokenizerBase, format: Any, max_seq_length: int = 40) -> ExampleBuilder:
    tokenization = Tokenization(tokenizer)
    return ExampleBuilder(format, tokenization, max_seq_length=max_seq_length, drop_demonstrations=True)


def room_for(builder: ExampleBuilder, **changes: Any) -> tuple[int, int]:
    """Tokens of the prompt and of its answer."""
    config = GreedyConfig(predictions_per_test=1, batch_size=1, augmentations=[], **{"grammar": False, **changes})
    (prompt,) = augmented_prompts(builder, lambda *_: [Same()], Riddle("r", "0123456789", [None]), 0, config)
    return len(prompt.token_ids), prompt.max_new_tokens


def test_an_unknown_answer_counts_nothing_where_none_is_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tokenizer, RiddleFormat())
    # A begin, ten digits, a newline; and three digits with an end.
    assert builder.num_tokens(Riddle("r", "0123456789", [None])) == 12
    assert builder.num_tokens(Riddle("r", "0123456789", [None, Word("123")])) == 16


def test_an_answer_without_a_bound_may_fill_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tokenizer, RiddleFormat())
    assert builder.longest_answer is None
    assert room_for(builder) == (12, 28)
    assert room_for(builder, max_new_tokens=5) == (12, 5)
    assert room_for(builder, max_seq_length=30) == (12, 18)
    # Half of the context is kept for the answer, or max_new_tokens, or a likely answer with its end.
    assert room_for(builder_of(tokenizer, RiddleFormat(), 24)) == (12, 12)
    assert room_for(builder_of(tokenizer, RiddleFormat(), 23)) == (12, 11)
    assert room_for(builder_of(tokenizer, RiddleFormat(), 22)) == (0, 0)
    assert room_for(builder_of(tokenizer, RiddleFormat(), 17), max_new_tokens=5) == (12, 5)
    format = RiddleFormat()
    format.likely = [Word("12"), Word("3")]
    assert room_for(builder_of(tokenizer, format, 15)) == (12, 3)
    assert room_for(builder_of(tokenizer, format, 14)) == (0, 0)


def test_a_kind_without_a_grammar_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ProblemError, match=r"^inference\.grammar=true: problems of this kind have no grammar; set it"):
        _ = builder_of(tokenizer, RiddleFormat()).grammar


def test_what_is_of_another_kind_is_a_bug(tokenizer: PreTrainedTokenizerBase) -> None:
    words: Any = None
    format: Any = GridFormat(words, MinimalGridEncoder())
    view: Any = TransformView(Identity())
    riddle = Riddle("r", "1", [None])
    for call, message in (
        (lambda: format.question(riddle, 0), "Riddle is not a Task"),
        (lambda: format.render(("1", None)), "tuple is not a GridQuestion"),
        (lambda: format.completion(Word("1")), "Word is not a GridAnswer"),
        (lambda: view.apply(riddle), "Riddle is not a Task"),
        (lambda: view.invert(Word("1")), "Word is not a GridAnswer"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
