"""The optional backend that replaces parts of transformers when it is imported, and so must come first."""

from __future__ import annotations

import importlib
from types import ModuleType

from arcft.config.model import ModelConfig
from arcft.errors import ArcftError


class BackendError(ArcftError):
    """A backend that is not installed, or that this machine can't run."""


def import_backend(config: ModelConfig) -> ModuleType | None:
    """Import unsloth where the config asks for it; returns the module, or None for plain transformers.

    A program calls this before anything imports transformers: unsloth patches it on import. Raises BackendError.
    """
    if config.backend != "unsloth":
        return None
    try:
        return importlib.import_module("unsloth")
    # Without a GPU, unsloth raises NotImplementedError.
    except (ImportError, NotImplementedError) as error:
        raise BackendError(
            f"model.backend=unsloth needs a CUDA GPU and the extra: pip install 'arcft[unsloth]' ({error}); "
            "or use model.backend=transformers"
        ) from error
