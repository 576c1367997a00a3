"""What a kind of problem provides: the only things that the rest of arcft knows about it.

A kind (ARC, say) is a folder under arcft/problems and one row of the table in arcft/runs/setup/kinds.py. Training and
decoding see token ids, voting sees keys, reports see drawings; a `Kind` holds what translates between those and the
problems themselves. The way of the data:

    Source -> Problem -> Question -> PromptText -> tokens -> completion -> Answer -> votes, MetricSet, Card
              QuestionSampler (training) or View (prediction) varies it on the way
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from arcft.config.data import DataConfig
from arcft.errors import ArcftError

TestKey = tuple[str, int]
"""One test: its problem's id, and its number within the problem, from 0."""

IdPairs = tuple[tuple[str, str], ...]
"""Sorted pairs (id in one set, id in another)."""


class ProblemError(ArcftError):
    """A problem, or a file of problems, that breaks a rule of its kind."""


class AnswerError(ArcftError):
    """Text or data that is not a valid answer."""


# --- Problems and answers -------------------------------------------------------------------------------------------


class Answer(Protocol):
    """A valid answer to a test: a grid, a number, a text. Immutable; equal if its key is."""

    @property
    def key(self) -> Hashable:
        """Equal for equal answers and for no others; votes are counted by it."""

    def to_json(self) -> Any:
        """Plain data; `AnswerCodec.answer_from_json` reads it back."""


class AnswerCodec(Protocol):
    """How predictions.jsonl stores answers; every Kind is one."""

    @property
    def answer_field(self) -> str:
        """The key of a line that holds the answer."""
        return "answer"

    def answer_from_json(self, value: Any) -> Answer | None:
        """Read what `to_json` wrote, or another program; None for no answer. Raise AnswerError for an answer that
        breaks a rule of the kind, and ValueError, naming the field, for a value that can't be an answer at all."""


class Problem(Protocol):
    """One or more tests that belong together, with what is shown to solve them."""

    @property
    def id(self) -> str:
        """Unique in a set."""

    @property
    def answers(self) -> Sequence[Answer | None]:
        """The true answer of each test; None where it is not known."""


class ProblemPool(abc.ABC):
    """Training material that draws a new problem each time, such as generated pairs of one ARC task type."""

    id: str

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Problem: ...


Item = Problem | ProblemPool
"""What a source holds and training draws from."""

Sources = list[tuple[float, list[Item]]]
"""Weighted sets of items."""


class Question(Protocol):
    """One test as it is asked, with the demonstrations shown beside it. Only its kind looks inside."""


# --- Text -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A question in words: `system`, `user` and `opener` are given, `completion` is asked for."""

    system: str
    """The system turn; empty for none."""

    user: str
    """The demonstrations and the question."""

    opener: str
    """The fixed beginning of the answer: given, not asked for, in training as at inference."""

    completion: str
    """The rest of the answer; empty where the answer is not known."""

    output_spans: tuple[tuple[int, int], ...] = ()
    """For each demonstration, where in `user` its output stands: first and last + 1 character."""


@dataclasses.dataclass(frozen=True)
class ClosedTexts:
    """Texts that between them have every token that any text of a format can have."""

    prompts: Iterable[PromptText]
    """Samples of all that is fixed, and of all places where it meets what is not."""

    characters: str
    """What is not fixed is written in these, in any order."""


class TokenCodec(Protocol):
    """Completions as token ids; arcft.text.tokens.Tokenization is one."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers."""

    @property
    def end_id(self) -> int:
        """The token that ends the answer's turn."""

    def prompt_ids(self, system: str, user: str, opener: str) -> list[int]:
        """The tokens of a PromptText up to its completion."""

    def completion_ids(self, completion: str) -> list[int]:
        """The tokens of `completion`, then `end_id`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text before the first end token."""


class Positions(Protocol):
    """Position ids that jump: each depends on its token and on the position before it, on nothing else."""

    def __call__(self, token_ids: Sequence[int], after: int = -1) -> list[int]:
        """The positions of `token_ids` after a token at position `after`, by default from the beginning."""


class Cursor(Protocol):
    """A place in a completion that is being written."""

    @property
    def choices(self) -> Sequence[int]:
        """Ids of the tokens that may come next, ascending: a single one is forced, none follows the end.

        Where the completion may end, `end_id` is one of them. Equal choices are the same object wherever they occur,
        so that what is computed from them once can be found again by identity.
        """

    def advance(self, token: int) -> None:
        """Append `token`; raise ValueError if it is not one of `choices`."""

    def copy(self) -> Cursor:
        """An independent cursor at the same place."""


class Grammar(Protocol):
    """All completions that are valid answers. A call returns a cursor before the first token."""

    @property
    def longest(self) -> int:
        """Tokens of the longest completion, `end_id` included."""

    def __call__(self) -> Cursor: ...


class ProblemFormat(Protocol):
    """Writes questions as text, for training and prediction alike, and reads answers back. A subclass inherits what has
    a default here."""

    def question(self, problem: Problem, test_index: int) -> Question:
        """Test `test_index` (from 0) of `problem` as it is."""

    def render(self, question: Question) -> PromptText: ...

    def completion(self, answer: Answer) -> str:
        """What a model should write for `answer` after the opener."""

    def parse(self, completion: str) -> Answer:
        """The answer in a completion; raise AnswerError unless it is exactly in the format."""

    def shorten(self, question: Question) -> Question | None:
        """The question with one demonstration fewer; None where it needs all that are left."""
        return None

    def min_tokens(self, question: Question) -> int:
        """A lower bound of its tokens, known without writing it; 0 where there is none."""
        return 0

    def shown_answers(self, question: Question) -> Sequence[Answer]:
        """The demonstrations' outputs: an unknown answer is assumed to be as long as the longest."""
        return ()

    def likely_answers(self, question: Question) -> Sequence[Answer]:
        """Answers about as long as the true one may be; room is kept for the longest."""
        return self.shown_answers(question)

    def longest_completions(self) -> Sequence[str]:
        """Completions of which one has the most tokens that any answer can take; empty where there is no bound."""
        return ()

    def draft(self, problem: Problem, test_index: int) -> Answer | None:
        """An answer that is likely to be nearly right before a model was asked, for speculative decoding."""
        return None

    def closed_texts(self) -> ClosedTexts | None:
        """For model.prune_vocabulary: samples from which every token follows. None where problems may be about
        anything; the tokens are then those of the run's own problems."""
        return None

    def grammar(self, tokens: TokenCodec) -> Grammar | None:
        """The valid completions; None where the kind has no grammar. Raise ArcftError where the tokenizer allows
        none."""
        return None


# --- Varying problems -----------------------------------------------------------------------------------------------


class View(Protocol):
    """A problem varied in a way that can be undone; an immutable, hashable value, equal if it varies the same way."""

    def apply(self, problem: Problem) -> Problem: ...

    def map_answers(self, problem: Problem, test_index: int, answers: Sequence[Answer]) -> list[Answer]:
        """What `answers` to a test of `problem` become in the varied problem."""

    def invert(self, answer: Answer) -> Answer:
        """The answer to the original problem that `answer` stands for in the varied one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for predictions.jsonl."""


@dataclasses.dataclass(frozen=True)
class Unvaried(View):
    """The view that changes nothing, for kinds without augmentations."""

    def apply(self, problem: Problem) -> Problem:
        return problem

    def map_answers(self, problem: Problem, test_index: int, answers: Sequence[Answer]) -> list[Answer]:
        return list(answers)

    def invert(self, answer: Answer) -> Answer:
        return answer

    def to_dict(self) -> dict[str, Any]:
        return {"name": "identity"}


DealViews = Callable[[Problem, int, np.random.Generator], list[View]]
"""Views for a number of predictions of one problem, the first of which changes nothing; more extend fewer."""


class QuestionSampler(Protocol):
    """Draws the questions that training asks: each item's problems in turn, augmented."""

    def problems(self, item: Item, rng: np.random.Generator) -> list[Problem]:
        """The problems that `item` is learned as. Raise ProblemError where there is nothing to learn from it."""

    def min_tokens(self, problem: Problem, *, drop_demonstrations: bool) -> int:
        """A lower bound of the tokens of every question drawn from `problem`, shortened as far as possible with
        `drop_demonstrations`; 0 where there is none."""
        return 0

    def draw(self, problem: Problem, rng: np.random.Generator) -> Question:
        """One question with its answer, augmented."""


@dataclasses.dataclass(frozen=True)
class OwnMaterial:
    """What a model can learn from a problem without its answers: for test-time fine-tuning."""

    item: Item
    held_back: Question | None = None
    """Asks for something that `item` does not show; None where nothing can be spared."""

    note: str = ""
    """What the user should know about it, to follow `the task has ` or `TASKS: `."""


class OwnExamples(Protocol):
    """How a problem is learned from its own demonstrations."""

    def material(self, problem: Problem, *, hold_back: bool) -> OwnMaterial: ...

    def trials(self, item: Item) -> Iterable[Question]:
        """Un-augmented questions of which at least one must fit the context."""


# --- Scores, drawings, files ----------------------------------------------------------------------------------------


class MetricSet(Protocol):
    """The metrics of a kind, fractions from 0 to 1, per test; arcft.scoring averages them over tests and problems."""

    names: Sequence[str]
    """All of them, in the order in which they are shown."""

    primary: str
    """The one that says whether a problem is solved: 1 if every test is, by one of the attempts."""

    score_over_tests: str
    """Completes `this is ...` for the mean of the primary metric over all tests, e.g. `how Kaggle scores`; empty if
    there is nothing to say."""

    any_correct: str
    """1 for a test if any prediction is right."""

    attempts: int
    """Answers submitted for a test."""

    by_rank: Mapping[str, int | None]
    """Metrics that depend on the rank of the right answer alone: 1 up to this rank (None: at any rank)."""

    best: Sequence[str]
    """Those that may choose the best checkpoint, the higher the better."""

    grow: Sequence[str]
    """Those that rise with the number of predictions alone."""

    closeness: Sequence[str]
    """What reports sort problems by that ended alike, the higher the better."""

    definitions: Mapping[str, str]
    """By name, what each is the share of."""

    headlines: Mapping[str, str]
    """The few that open a report, with a caption."""

    compared: Mapping[str, str]
    """As many as a table of checkpoints has room for in 80 columns, each with its heading, of several lines where it
    is long."""

    charts: Mapping[str, Sequence[str]]
    """Those that are drawn against training step: by the title of a chart, which has a scale of its own."""

    colors: Mapping[str, str]
    """The colour, `#rrggbb`, of each that is drawn."""

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """How close one problem came, in a few words: `25.0% of predictions right`."""

    def score_test(
        self, truth: Answer, predictions: Sequence[Answer | None], attempts: Sequence[Answer]
    ) -> dict[str, float]:
        """All metrics of one test: `predictions` (None: no valid answer), and the `attempts` selected from them."""


Drawable = Any
"""An answer, or a part of a question: whatever a kind's Card draws."""


class Card(Protocol):
    """Draws problems and answers, for HTML, pictures and the terminal."""

    noun: str
    """What an answer is called, in the singular: `grid`."""

    css: str
    """Style rules for what `html` returns."""

    legend: str
    """A sentence on how to read the drawings, for the end of a report; empty where they need none."""

    def demonstrations(self, problem: Problem) -> Sequence[tuple[Drawable, Drawable]]:
        """Inputs and outputs that are shown."""

    def question(self, problem: Problem, test_index: int) -> Drawable:
        """What test `test_index` (from 0) asks."""

    def html(self, drawn: Sequence[tuple[Drawable, Answer | None]], *, room: int) -> list[str]:
        """Safe HTML of each, all at one scale at which the largest takes about `room` pixels. What differs from the
        true answer beside it is marked, where there is one and the two can be compared place by place."""

    def image(self, drawn: Drawable, box: int) -> Any:
        """A PIL image of at most `box` x `box` pixels."""

    def terminal(self, named: Sequence[tuple[str, Drawable | None]]) -> Any:
        """A rich renderable: named drawings side by side; None is drawn as `none`."""

    def difference(self, answer: Answer, truth: Answer) -> str:
        """What is wrong with a wrong answer, in a few words: `3 wrong cells`."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a verifier thinks of a candidate."""

    score: float
    """Compared between the candidates of one test; the higher, the better."""

    reasons: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Why, as plain data for predictions.jsonl."""


Verifier = Callable[[Problem, int, Answer], Verdict]
"""Judges a candidate for a test, without looking at the true answer. The same question gets the same verdict."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One way in which two sets were compared."""

    key: str
    """Its name in JSON."""

    title: str
    """What it looks for, at most 50 characters."""

    found: IdPairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two sets share, as pairs (id in the first, id in the second)."""

    same: IdPairs
    """Problems that are equal, up to the kind's symmetries."""

    share_a_part: IdPairs = ()
    """Problems that share a part with its answer, such as a demonstration."""

    types: IdPairs = ()
    """Pools of generated problems, and problems of the type that they are generated for."""

    part: str = "part"
    """What `share_a_part` compares."""

    @property
    def found(self) -> bool:
        """Whether anything is shared."""
        return bool(self.same or self.share_a_part or self.types)

    def comparisons(self) -> list[Comparison]:
        """Every comparison that was made, for `arcft contamination`."""
        return [
            Comparison("same", "equal problems", self.same),
            Comparison("share_a_part", f"problems that share a {self.part}", self.share_a_part),
            Comparison("types", "pools of the types of problems there", self.types),
        ]


class Kind(AnswerCodec, Protocol):
    """One kind of problem: a subclass inherits what has a default here.

    Items, questions and answers that reach a kind's methods are its own.
    """

    @property
    def name(self) -> str:
        """As `data.kind` names it."""

    @property
    def configs(self) -> Mapping[str, type]:
        """The kind's own config classes, by group: data (a DataConfig), encoder, prompt, augmentation. A class with
        subclasses stands for a choice between them by `name`. A group that is not here is refused unless it is
        null."""

    @property
    def positions(self) -> Sequence[str]:
        """Values of model.positions beside `none`."""
        return ()

    @property
    def augmentations(self) -> Sequence[str]:
        """What inference.augmentations may name."""
        return ()

    @property
    def metrics(self) -> MetricSet: ...

    @property
    def card(self) -> Card: ...

    def load(self, data: DataConfig) -> Sources:
        """The items of every source that `data` names, before any selection. Raise ProblemError."""

    def title(self, data: DataConfig) -> str:
        """What messages call the set that `data` names: `arcagi's evaluation set`, or a path."""
        return self.name

    @property
    def set_help(self) -> str:
        """How `load_set` wants a set named: `a bundled set such as arcagi:evaluation, a JSON file, or a folder`."""
        return "a path"

    def load_set(self, name: str) -> Sequence[Item]:
        """A set by its short name (such as `arcagi:evaluation`) or path, to compare with. Raise ProblemError."""
        raise ProblemError(f"{name}: problems of kind {self.name} have no sets to compare with")

    def is_set_name(self, name: str) -> bool:
        """Whether `name` is a short name rather than a path."""
        return False

    def describe(self, items: Sequence[Item]) -> str:
        """How many they are: `400 tasks`."""
        return f"{len(items)} problems"

    def bundled_items(self, ids: Collection[str]) -> Sequence[Item]:
        """Items with these ids from the sets that come with the package: what a bundled model was pretrained on."""
        return ()

    def overlap(self, first: Iterable[Item], second: Iterable[Item]) -> Overlap: ...

    def fingerprint(self, items: Iterable[Item]) -> str:
        """sha256 of ids and content, in order."""

    def format(
        self, encoder: Any, prompt: Any, tokenizer: Any, *, positions: str
    ) -> tuple[ProblemFormat, Positions | None]:
        """The format that the two groups describe, checked against the tokenizer, and what `positions` stands for.
        Raise ArcftError, with an option that works, where tokenizer and format don't go together."""

    def check_positions(self, format: ProblemFormat, tokens: TokenCodec, positions: str) -> None:
        """Raise ArcftError where jumping positions don't fit what the format writes."""
        return None

    def deal_views(self, augmentations: Sequence[str]) -> DealViews:
        """Views made by the named `augmentations`."""
        return lambda problem, count, rng: [Unvaried()] * count

    def sampler(
        self, augmentation: Any, format: ProblemFormat, *, view: Literal["test", "leave_one_out"]
    ) -> QuestionSampler:
        """Training questions: `augmentation` is the group of that name, `view` is data.view."""

    def own_examples(self, format: ProblemFormat) -> OwnExamples:
        """Raise ProblemError where problems of this kind can't be learned from without their answers."""

    def verifier(self) -> Verifier:
        """For selection=verify. Raise ProblemError where the kind has none."""
        raise ProblemError(f"selection=verify: data.kind={self.name} has no verifier; use selection=vote")

    def write_submission(
        self, path: Path, problems: Sequence[Problem], attempts: Mapping[TestKey, Sequence[Answer]]
    ) -> None:
        """Write the answers to submit, whole or not at all: a JSON object with an entry for each problem by its id.

        `attempts` has every test of `problems`; those that were not predicted have none.
        """

    def read_submission(self, values: Any, where: str) -> Iterator[tuple[TestKey, Answer | AnswerError]]:
        """The answers in the parsed JSON of a submission, without placeholders; an AnswerError for one that breaks a
        rule of the kind. Raise ProblemError, which starts with `where`, for what is no submission."""
        raise ProblemError(f"{where}: a submission of data.kind={self.name} can't be read; use predictions.jsonl")

    def problems(self, config: Any) -> Iterator[str]:
        """What is wrong with a run's config (TrainConfig or EvaluateConfig) as far as only the kind can tell."""
        yield from ()
