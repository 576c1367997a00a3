"""How a test's attempts are chosen from its predictions. Options: conf/selection/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal


@dataclasses.dataclass(kw_only=True)
class SelectionConfig:
    """A choice; ties of `score` and `verify` are settled by the vote."""

    renamed: ClassVar[dict[str, str]] = {"views": "num_augmentations"}

    name: str

    @property
    def scoring_augmentations(self) -> int | None:
        """Augmentations under which predicted answers are scored; None where they are not."""
        return None


@dataclasses.dataclass(kw_only=True)
class VoteConfig(SelectionConfig):
    """The most frequent answer first, ties by mean log-probability per token."""

    name: Literal["vote"] = "vote"


@dataclasses.dataclass(kw_only=True)
class ScoreConfig(SelectionConfig):
    """The answer first that the model finds most probable under several augmentations of the test."""

    name: Literal["score"] = "score"

    num_augmentations: int
    """Augmentations of a test under which every predicted answer is scored; dealt like those of the predictions."""

    @property
    def scoring_augmentations(self) -> int:
        return self.num_augmentations

    def problems(self) -> Iterator[str]:
        if self.num_augmentations < 1:
            yield f"selection.num_augmentations={self.num_augmentations}: at least 1"


@dataclasses.dataclass(kw_only=True)
class VerifyConfig(SelectionConfig):
    """The answer first that shares most of the properties common to all demonstrations."""

    name: Literal["verify"] = "verify"
