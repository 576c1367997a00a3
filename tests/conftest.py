"""Shared set-up: one thread for torch, no network for the hub, real tokenizers (tests/support/registries.py)."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests.support.registries import smollm2_gguf_file, tokenizer_files

# On a busy machine an example takes any time; what is asserted must not depend on it.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    # Two threads on a busy two-core machine are slower than one, and less repeatable.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """`tokenizer_folder("qwen2_5")`: the folder of a real tokenizer; skips the test where it can't be fetched."""
    return tokenizer_files


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of the real SmolLM2-135M-Instruct (Apache-2.0), about 98 MB."""
    return smollm2_gguf_file()
