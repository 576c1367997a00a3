"""The optional unsloth backend, which patches transformers on import and so has to be imported first."""

from __future__ import annotations

import importlib
from types import ModuleType

from arcft.config.model import ModelConfig
from arcft.errors import ArcftError


class BackendError(ArcftError):
    """A backend that is not installed, or that can't run on this machine."""


def import_backend(config: ModelConfig) -> ModuleType | None:
    """Import unsloth if the config asks for it; return the module, or None for plain transformers.

    Call this before anything imports transformers. Raise BackendError.
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
