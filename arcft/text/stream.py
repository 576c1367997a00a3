"""Training examples as an endless, reproducible stream, and a trial of it before training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from arcft.config.training import CurriculumStage
from arcft.errors import ArcftError
from arcft.protocols import Item, ProblemPool, QuestionSampler
from arcft.text.builder import ExampleBuilder
from arcft.text.item_sampler import ItemSampler
from arcft.text.tokens import Example

CHECKED_ITEMS = 200
SEARCHED = 10_000
"""Items of the stream among which `longest` looks for tasks."""

MAX_TOO_LONG = 0.9
# With the permitted 90% too long, this many attempts all fail once in 10^45 items.
MAX_DRAWS = 1000
_STREAM = 0x7E87  # keeps the draws of the stream apart from other users of the same seed


class LengthError(ArcftError):
    """Tasks that do not fit the context."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Which of the tasks tried before training do not fit the context without augmentation."""

    tried: int
    too_long: list[str]
    """Ids."""


class ExampleStream:
    """Augmented examples as a map-style dataset in which item k is a pure function of (seed, k) and, with a curriculum,
    of the stage that k / length falls into.

    So resuming means starting at an index, and any number of workers gives the same data.
    """

    def __init__(
        self,
        sampler: ItemSampler,
        questions: QuestionSampler,
        builder: ExampleBuilder,
        *,
        length: int,
        seed: int,
        curriculum: Sequence[CurriculumStage] = (),
    ) -> None:
        """`curriculum`, its stages in order, limits the lengths of earlier examples."""
        self.sampler = sampler
        self.questions = questions
        self.builder = builder
        self.length = length
        self.seed = seed
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
            problems = self.questions.problems(item, rng)
            problem = problems[rng.integers(len(problems))] if len(problems) > 1 else problems[0]
            # Most of what is drawn for a curriculum's first stage need not be augmented to know that it is too long.
            if self.questions.min_tokens(problem, drop_demonstrations=self.builder.drop_demonstrations) > limit:
                continue
            example = self.builder.example(self.questions.draw(problem, rng), limit)
            if example is not None:
                return example
        raise LengthError(f"{MAX_DRAWS} draws for example {k} were {self._remedy(stage)}")

    def longest(self, count: int) -> list[int]:
        """An index into the stream for each of the `count` longest tasks, by their lower bound of tokens, the longest
        first: of those that fit, and come up within the first SEARCHED items."""
        first: dict[str, int] = {}
        bounds: dict[str, int] = {}
        for k in range(min(len(self), SEARCHED)):
            item = self.sampler.item(k)
            if item.id in first:
                continue
            first[item.id] = k
            bounds[item.id] = max(
                self.questions.min_tokens(problem, drop_demonstrations=self.builder.drop_demonstrations)
                for problem in self.questions.problems(item, np.random.default_rng(0))
            )
        fitting = [id for id, bound in bounds.items() if 0 < bound <= self.builder.max_seq_length]
        return [first[id] for id in sorted(fitting, key=lambda id: bounds[id], reverse=True)[:count]]

    def check(self) -> Trial:
        """Try up to 200 tasks without augmentation.

        Pools are not listed as too long, since other draws may fit. Raise LengthError if more than 90% don't fit (with
        a curriculum: its first stage), and ProblemError for a task that has nothing to learn from.
        """
        first = self._stage(0)
        tightest = self._limit(first)
        tried, too_long, too_long_at_first = 0, [], []
        rng = np.random.default_rng([_STREAM, self.seed])
        for item in itertools.islice(self._distinct_items(), CHECKED_ITEMS):
            tried += 1
            questions = [
                self.builder.format.question(problem, index)
                for problem in self.questions.problems(item, rng)
                for index, answer in enumerate(problem.answers)
                if answer is not None
            ]
            if any(self.builder.example(question, tightest) is not None for question in questions):
                continue
            too_long_at_first.append(item)
            if tightest == self.builder.max_seq_length or all(self.builder.example(each) is None for each in questions):
                too_long.append(item)
        if len(too_long_at_first) > MAX_TOO_LONG * tried:
            raise LengthError(
                f"{len(too_long_at_first)} of {tried} tasks, more than {MAX_TOO_LONG:.0%}, are {self._remedy(first)} "
                f"(for example {', '.join(item.id for item in too_long_at_first[:3])})"
            )
        return Trial(tried, [item.id for item in too_long if not isinstance(item, ProblemPool)])

    def _distinct_items(self) -> Iterator[Item]:
        seen = set()
        for k in range(20 * CHECKED_ITEMS):
            item = self.sampler.item(k)
            if item.id not in seen:
                seen.add(item.id)
                yield item

    def _stage(self, k: int) -> int | None:
        """The curriculum stage that item k belongs to; None without a curriculum."""
        reached = [number for number, stage in enumerate(self.curriculum) if k / self.length >= stage.start]
        return reached[-1] if reached else None

    def _limit(self, stage: int | None) -> int:
        return self.builder.max_seq_length if stage is None else self.curriculum[stage].max_seq_length

    def _remedy(self, stage: int | None) -> str:
        key = "training.max_seq_length" if stage is None else f"training.curriculum[{stage}].max_seq_length"
        remedy = f"too long for {key}={self._limit(stage)}; raise {key}"
        return remedy if self.builder.drop_demonstrations else f"{remedy} or set training.drop_demonstrations=true"
