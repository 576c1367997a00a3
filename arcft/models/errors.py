"""The error of everything that has to do with a base model."""

from __future__ import annotations

from arcft.errors import ArcftError


class ModelError(ArcftError):
    """A model or tokenizer that can't be found, read or built."""
