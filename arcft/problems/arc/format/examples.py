"""Problems as training examples and prompts: fitted to the context, streamed, and checked against the tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.config.training import CurriculumStage
from arcft.errors import ArcftError
from arcft.problems.arc.augment.transforms import Transform
from arcft.problems.arc.data.sources import PairPool, TaskSampler
from arcft.problems.arc.format.encoders import GridEncoder
from arcft.problems.arc.format.evenness import check_uneven_tokens as check_uneven_tokens
from arcft.problems.arc.format.grammar import GridGrammar
from arcft.problems.arc.format.prompts import PromptBuilder
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Task, TaskError
from arcft.problems.arc.views import (
    Problem,
    drop_demonstrations,
    input_from_inputs,
    leave_one_out,
    test_problem,
)
from arcft.text.tokens import Example, Tokenization

CHECKED_TASKS = 200
MAX_TOO_LONG = 0.9
# At the allowed nine in ten too long, so many attempts all fail once in 10^45 items.
MAX_DRAWS = 1000
_STREAM = 0x7E87  # keeps the draws of the stream apart from those of other users of the same seed


class LengthError(ArcftError):
    """Tasks that do not fit the context."""


class ExampleBuilder:
    """Turns problems into training examples and into prompts, at most `max_seq_length` tokens long."""

    def __init__(
        self,
        prompts: PromptBuilder,
        tokenization: Tokenization,
        *,
        max_seq_length: int,
        drop_demonstrations: bool,
        cells_are_tokens: bool = False,
    ) -> None:
        """`drop_demonstrations`: shorten what is too long by its last demonstrations, instead of giving it up.

        `cells_are_tokens`: every cell takes a token at least, so what has too many cells need not be written to know
        that it is too long.
        """
        self.prompts = prompts
        self.tokenization = tokenization
        self.max_seq_length = max_seq_length
        self.drop_demonstrations = drop_demonstrations
        self.cells_are_tokens = cells_are_tokens

    def example(self, problem: Problem, max_seq_length: int | None = None) -> Example | None:
        """The training example, or None if it does not fit; raise TokenizationError if the answer is not known.

        `max_seq_length` is a tighter limit than the builder's own.
        """
        limit = self.max_seq_length if max_seq_length is None else max_seq_length
        shortened: Problem | None = problem
        while shortened is not None:
            if not (self.cells_are_tokens and _num_cells(shortened) > limit):
                example = self._example(shortened)
                if len(example.input_ids) <= limit:
                    return example
            shortened = drop_demonstrations(shortened) if self.drop_demonstrations else None
        return None

    def prompt(self, problem: Problem) -> list[int]:
        """The prompt's token ids, whatever their number: the beginning of `example(problem)`."""
        text = self.prompts.render(problem)
        return self.tokenization.prompt_ids(text.system, text.user, text.opener)

    def fit(self, problem: Problem, room: int | None) -> Problem | None:
        """The problem with as many of its demonstrations as fit, the first ones; None if not even one does.

        `room` is how many tokens are kept free for the answer; None keeps what a 30x30 grid takes.
        """
        if room is None:
            room = self.longest_answer
        shortened: Problem | None = problem
        while shortened is not None and len(self.prompt(shortened)) + room > self.max_seq_length:
            shortened = drop_demonstrations(shortened)
        return shortened

    def num_tokens(self, task: Task) -> int:
        """Tokens of prompt and answer, of the longest of the task's tests, without augmentation.

        An answer that is not known is taken to be as long as the longest output of the demonstrations.
        """
        lengths = []
        for index, pair in enumerate(task.test):
            problem = test_problem(task, index)
            answers = [pair.output] if pair.output is not None else [shown.output for shown in task.train]
            completions = [self.prompts.completion(answer) for answer in answers if answer is not None]
            longest = max(self.tokenization.completion_length(completion) for completion in completions)
            lengths.append(len(self.prompt(problem)) + longest)
        return max(lengths)

    @functools.cached_property
    def longest_answer(self) -> int:
        """Tokens of a 30x30 answer with the end of the turn."""
        return longest_answer_tokens(self.tokenization.tokenizer, self.prompts.encoder)

    @functools.cached_property
    def grammar(self) -> GridGrammar:
        """The grids that may be answered, token by token; raises GrammarError where the tokenizer allows none."""
        name = str(self.tokenization.tokenizer.name_or_path) or "tokenizer"
        return GridGrammar(self.prompts.encoder, self.tokenization, name=name)

    def _example(self, problem: Problem) -> Example:
        text = self.prompts.render(problem)
        return self.tokenization.example(text.system, text.user, text.opener, text.completion, text.output_spans)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Which of the tasks that were tried before training do not fit the context as they are."""

    tried: int
    too_long: list[str]
    """Ids."""


class ExampleStream:
    """Augmented examples as a map-style dataset in which item k is a pure function of (seed, k) and, with a curriculum,
    of the stage that k / length falls into.

    So to resume is to start at an index, and any number of workers gives the same data.
    """

    def __init__(
        self,
        sampler: TaskSampler,
        draw: Callable[[Task, np.random.Generator], Transform],
        builder: ExampleBuilder,
        *,
        length: int,
        seed: int,
        view: Literal["test", "leave_one_out"],
        input_from_inputs: float,
        curriculum: Sequence[CurriculumStage] = (),
    ) -> None:
        """`draw` draws the augmentation of a task, which makes no grid smaller; `input_from_inputs` is the share of
        examples that ask for another input instead of an output; `curriculum`, its stages in order, limits the lengths
        of earlier examples."""
        self.sampler = sampler
        self.draw = draw
        self.builder = builder
        self.length = length
        self.seed = seed
        self.view = view
        self.input_from_inputs = input_from_inputs
        self.curriculum = curriculum

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> Example:
        if not 0 <= k < self.length:
            raise IndexError(k)
        stage = self._stage(k)
        limit = self._limit(stage)
        for attempt in range(MAX_DRAWS):
            rng = np.random.default_rng([_STREAM, self.seed, k, attempt])
            # A task that is too long is replaced by any other, not by the next, which item k + 1 shows already.
            item = self.sampler.item(k if attempt == 0 else int(rng.integers(2**31)))
            task = self._task(item, rng)
            if self._is_too_large(task, limit):
                continue
            example = self.builder.example(self._problem(task, rng), limit)
            if example is not None:
                return example
        raise LengthError(f"{MAX_DRAWS} draws for example {k} were {self._remedy(stage)}")

    def check(self) -> Trial:
        """Try up to 200 tasks without augmentation.

        Of a set of many pairs, which other draws may make fit, no id is returned. Raise LengthError if more than 90%
        don't fit, in a curriculum its first stage, and TaskError for a task that has nothing to learn from.
        """
        first = self._stage(0)
        tightest = self._limit(first)
        tried, too_long, too_long_at_first = 0, [], []
        rng = np.random.default_rng([_STREAM, self.seed])
        for item in itertools.islice(self._distinct_items(), CHECKED_TASKS):
            tried += 1
            problems = [test_problem(task, index) for task in self._views(item, rng) for index in _answered(task)]
            if any(self.builder.example(problem, tightest) is not None for problem in problems):
                continue
            too_long_at_first.append(item)
            if tightest == self.builder.max_seq_length or all(self.builder.example(each) is None for each in problems):
                too_long.append(item)
        if len(too_long_at_first) > MAX_TOO_LONG * tried:
            raise LengthError(
                f"{len(too_long_at_first)} of {tried} tasks, more than {MAX_TOO_LONG:.0%}, are {self._remedy(first)} "
                f"(for example {', '.join(item.id for item in too_long_at_first[:3])})"
            )
        return Trial(tried, [item.id for item in too_long if isinstance(item, Task)])

    def _distinct_items(self) -> Iterator[Task | PairPool]:
        seen = set()
        for k in range(20 * CHECKED_TASKS):
            item = self.sampler.item(k)
            if item.id not in seen:
                seen.add(item.id)
                yield item

    def _task(self, item: Task | PairPool, rng: np.random.Generator) -> Task:
        views = self._views(item, rng)
        return views[rng.integers(len(views))] if len(views) > 1 else views[0]

    def _views(self, item: Task | PairPool, rng: np.random.Generator) -> list[Task]:
        """The tasks that `item` is learned as, in turn; of a pool, a drawn one."""
        if isinstance(item, PairPool):
            return [item.draw(rng)]
        if self.view == "leave_one_out":
            return leave_one_out(item)
        if not _answered(item):
            raise TaskError(
                f"task {item.id}: no test output is known, so there is nothing to learn; "
                "use data.view=leave_one_out to learn from its demonstrations"
            )
        return [item]

    def _is_too_large(self, task: Task, limit: int) -> bool:
        """Whether the cells alone of the smallest pairs that make an example are too many: most of what is drawn for a
        curriculum's first stage need not be augmented to know that."""
        if not self.builder.cells_are_tokens or self.input_from_inputs:
            return False
        sizes = sorted(
            pair.input.size + (0 if pair.output is None else pair.output.size) for pair in task.train + task.test
        )
        needed = 2 if self.builder.drop_demonstrations else len(task.train) + 1
        return sum(sizes[:needed]) > limit

    def _problem(self, task: Task, rng: np.random.Generator) -> Problem:
        task = self.draw(task, rng).apply(task)
        answered = _answered(task)
        index = answered[rng.integers(len(answered))]
        if self.input_from_inputs and rng.random() < self.input_from_inputs:
            return input_from_inputs(task, index)
        return test_problem(task, index)

    def _stage(self, k: int) -> int | None:
        """The stage of the curriculum that item k belongs to; None without a curriculum."""
        begun = [number for number, stage in enumerate(self.curriculum) if k / self.length >= stage.start]
        return begun[-1] if begun else None

    def _limit(self, stage: int | None) -> int:
        return self.builder.max_seq_length if stage is None else self.curriculum[stage].max_seq_length

    def _remedy(self, stage: int | None) -> str:
        key = "training.max_seq_length" if stage is None else f"training.curriculum[{stage}].max_seq_length"
        remedy = f"too long for {key}={self._limit(stage)}; raise {key}"
        return remedy if self.builder.drop_demonstrations else f"{remedy} or set training.drop_demonstrations=true"


def _num_cells(problem: Problem) -> int:
    """Cells of all the grids that are written for `problem`."""
    grids = [pair.input for pair in problem.demonstrations] + [problem.query, problem.answer]
    if problem.kind == "output":
        grids += [pair.output for pair in problem.demonstrations]
    return sum(grid.size for grid in grids if grid is not None)


def _answered(task: Task) -> list[int]:
    return [index for index, pair in enumerate(task.test) if pair.output is not None]


def longest_answer_tokens(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder) -> int:
    """Tokens of the answer for a 30x30 grid, without the opener, with the end of the turn.

    Where cells take a varying number of tokens, it is the longest of the ten grids of one colour and a random one.
    """
    rng = np.random.default_rng(0)
    grids = [np.full((MAX_SIDE, MAX_SIDE), color, dtype=np.int8) for color in range(NUM_COLORS)]
    grids.append(rng.integers(0, NUM_COLORS, (MAX_SIDE, MAX_SIDE), dtype=np.int8))
    texts = [encoder.to_text(grid).removeprefix(encoder.opener) for grid in grids]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) + 1
