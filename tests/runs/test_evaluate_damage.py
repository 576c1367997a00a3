"""What is not as training left it is refused, naming the file; and what evaluation never reads can do no harm."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.checkpoints import CheckpointError
from arcft.config.model import ModelConfig
from arcft.errors import ArcftError
from arcft.files import manifest_sha256
from arcft.models.load import draw_random_model
from arcft.scoring.predictions import read_predictions
from tests.support.arc import ARC
from tests.support.evaluate_command import answers, change_byte, evaluated, trained
from tests.support.train_command import ARCHITECTURES

TRAINER_FILES = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "loop_state.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder, with weights."""
    folder = tmp_path_factory.mktemp("base")
    config = ModelConfig(name="small", path=str(ARCHITECTURES / "qwen2"), init="random")
    draw_random_model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("run"), f"model.path={base}", "model.init=pretrained", "training.generation_tasks=0",
        "training.max_steps=2",
    )  # fmt: skip


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(ArcftError) as caught:
        evaluated(folder, *overrides)
    assert not (folder / "metrics.json").exists()
    return str(caught.value)


def test_a_changed_byte_in_any_file_is_refused_naming_it(copy: Path, tmp_path: Path) -> None:
    checkpoint = copy / "checkpoint-2"
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "manifest.json")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "run.yaml"} <= set(names)
    for name in names:
        original = (checkpoint / name).read_bytes()
        for at in (0, len(original) // 2, len(original) - 1):
            change_byte(checkpoint / name, lambda size, at=at: at)
            assert refusal(tmp_path / "evaluation", f"checkpoint={copy}") == (
                f"{checkpoint / name}: was changed: its sha256 is not the manifest's. Use another checkpoint"
            )
            (checkpoint / name).write_bytes(original)
    assert not (tmp_path / "evaluation").exists()


def test_a_manifest_with_any_other_entry_is_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "checkpoint-2" / "manifest.json"
    original = path.read_text(encoding="utf-8")
    assert json.loads(original)["step"] == 2
    for changed in (original.replace('"step": 2', '"step": 3'), original.replace('"seed": 0', '"seed": 1')):
        assert changed != original
        path.write_text(changed, encoding="utf-8")
        assert refusal(tmp_path / "evaluation", f"checkpoint={copy}") == (
            f"{path}: was changed: its sha256 is not the one in it. Use another checkpoint"
        )


def test_a_missing_or_cut_file_is_refused_naming_it(copy: Path, tmp_path: Path) -> None:
    checkpoint = copy / "checkpoint-2"
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        path.unlink()
        message = refusal(tmp_path / "evaluation", f"checkpoint={checkpoint}")
        if path.name == "manifest.json":
            assert message == f"{checkpoint}: half-written: it has no manifest.json; use another checkpoint"
        else:
            assert message == f"{path}: is missing; the manifest beside it lists it. Use another checkpoint"
        path.write_bytes(content[:-2])
        message = refusal(tmp_path / "evaluation", f"checkpoint={checkpoint}")
        if path.name == "manifest.json":
            assert message.startswith(f"{path}: is damaged")
        else:
            assert f"{path}: has {len(content) - 2} bytes, was written with {len(content)}" in message
        path.write_bytes(content)


def test_a_manifest_changed_to_fit_is_still_no_config_to_run(copy: Path, tmp_path: Path) -> None:
    """A run.yaml is data: what it names is checked, and never imported or called."""
    path = copy / "checkpoint-2" / "run.yaml"
    first, checksum, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert checksum.startswith("sha256: ")
    text = "".join([first, *lines])
    for bad, words in {
        text.replace("MinimalGridEncoder", "os.system"): "os.system",
        text.replace("encoder:", "encoding:"): "there is no such key",
        "- 1\n": "expected a mapping",
        "!!python/object/apply:os.system ['true']\n": "can't be read",
    }.items():
        path.write_text(bad, encoding="utf-8")
        seal(path.parent)
        assert words in refusal(tmp_path / "evaluation", f"checkpoint={copy}")


def test_another_base_model_under_the_same_path_is_refused(copy: Path, base: Path, tmp_path: Path) -> None:
    weights = base / "model.safetensors"
    original = weights.read_bytes()
    change_byte(weights)
    try:
        message = refusal(tmp_path / "evaluation", f"checkpoint={copy}")
    finally:
        weights.write_bytes(original)
    assert message.startswith(f"{copy / 'checkpoint-2'}: trained on {base} with fingerprint ")
    assert "so it is another model" in message
    weights.rename(base / "away")
    try:
        assert f"model.path={base}" in refusal(tmp_path / "other", f"checkpoint={copy}")
    finally:
        (base / "away").rename(weights)


def test_a_base_model_that_is_gone_is_named(copy: Path, base: Path, tmp_path: Path) -> None:
    evaluated(tmp_path / "before", f"checkpoint={copy}")
    (copy / "evaluations.jsonl").unlink()
    moved = base.rename(base.with_name("moved"))
    try:
        message = refusal(tmp_path / "evaluation", f"checkpoint={copy}")
        assert f"model.path={base}: there is no such file or folder" in message
        assert message.endswith("If it lies elsewhere now: base_model=DIR")
        # Found where it was moved to, it is the same model.
        evaluated(tmp_path / "after", f"checkpoint={copy}", f"base_model={moved}")
        before, after = (read_predictions(tmp_path / name / "predictions.jsonl", ARC) for name in ("before", "after"))
        assert [prediction.logprob for prediction in after] == [prediction.logprob for prediction in before]
        original = (moved / "model.safetensors").read_bytes()
        change_byte(moved / "model.safetensors")
        message = refusal(tmp_path / "wrong", f"checkpoint={copy}", f"base_model={moved}", "inference.seed=1")
        (moved / "model.safetensors").write_bytes(original)
        assert "so it is another model" in message
    finally:
        moved.rename(base)


def test_the_dry_run_finds_a_wrong_base_model(copy: Path, base: Path, tmp_path: Path) -> None:
    original = (base / "model.safetensors").read_bytes()
    change_byte(base / "model.safetensors")
    try:
        with pytest.raises(CheckpointError, match="so it is another model"):
            evaluated(tmp_path / "evaluation", f"checkpoint={copy}", "dry_run=true")
    finally:
        (base / "model.safetensors").write_bytes(original)
    assert not (tmp_path / "evaluation").exists()


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def test_the_trainers_pickles_are_never_read(
    copy: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where someone changed them and the manifest to fit."""
    expected = answers(evaluated(tmp_path / "expected", f"checkpoint={run}"))
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(_Bomb()))
    assert Path("exploded").exists()
    Path("exploded").unlink()
    for name in TRAINER_FILES:
        (copy / "checkpoint-2" / name).write_bytes(pickle.dumps(_Bomb()))
    seal(copy / "checkpoint-2")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("read a pickle")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    assert answers(evaluated(tmp_path / "evaluation", f"checkpoint={copy}")) == expected
    assert not Path("exploded").exists()


def test_without_its_trainer_state_a_checkpoint_is_incomplete(copy: Path, tmp_path: Path) -> None:
    (copy / "checkpoint-2" / "optimizer.pt").unlink()
    assert "optimizer.pt: is missing" in refusal(tmp_path / "evaluation", f"checkpoint={copy}")


def test_a_whole_model_needs_nothing_but_its_checkpoint(base: Path, tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", f"model.path={base}", "model.init=pretrained", "lora=none", "training.max_steps=2",
        "training.generation_tasks=0",
    )  # fmt: skip
    moved = base.rename(base.with_name("moved"))
    try:
        folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    finally:
        moved.rename(base)
    assert len(answers(folder)) == 4
    change_byte(run / "checkpoint-2" / "model.safetensors")
    message = refusal(tmp_path / "other", f"checkpoint={run}")
    assert message.startswith(f"{run}/checkpoint-2/model.safetensors: was changed")


def seal(checkpoint: Path) -> None:
    """Write the manifest anew for the files as they are."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}), encoding="utf-8")
