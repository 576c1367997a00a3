"""Weights for the bundled model: from a finished checkpoint into the package, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arcft.checkpoints import MANIFEST_FILE, last_checkpoint, read_run_yaml, write_run_yaml
from arcft.config.model import ModelConfig
from arcft.files import manifest_sha256
from arcft.models import bundled
from arcft.models.bundled import ASSETS, FILES
from arcft.models.load import load_model, load_tokenizer
from tests.support.train_command import QUIET, ROOT, TASK_IDS, ids, run_train

pytestmark = pytest.mark.slow

# The pretraining's own recipe, on ten small tasks and for two steps.
PRETRAINED = [
    "model=tiny",
    "model.init=random",
    "lora=none",
    *QUIET,
    ids(*TASK_IDS),
    "data.held_out=2",
    "data.disjoint_from=[arcagi:evaluation,arcagi2:evaluation]",
    "training.max_steps=2",
    "training.generation_tasks=0",
    "training.per_device_train_batch_size=2",
    "training.logging_steps=1",
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_train(folder, *PRETRAINED) == 0
    return folder


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """A copy of the bundled model without weights."""
    folder = tmp_path / "assets" / "tiny"
    shutil.copytree(ASSETS / "tiny", folder, ignore=shutil.ignore_patterns("bundle.json", "model.safetensors"))
    return folder


def ship(checkpoint: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "ship_tiny.py"), str(checkpoint), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def refused(checkpoint: Path, folder: Path) -> str:
    """What is said; nothing may have been written."""
    before = sorted(folder.iterdir())
    done = ship(checkpoint, folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before
    return done.stderr


def remade(run: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a run whose config is another one, sealed as if it had been trained so."""
    shutil.copytree(run, folder)
    checkpoint = last_checkpoint(folder)
    stored = read_run_yaml(checkpoint)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        place = stored["tasks"] if group == "tasks" else stored["config"][group]
        place[name] = value
    write_run_yaml(checkpoint, stored)
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    for path in checkpoint.iterdir():
        if path.name != MANIFEST_FILE:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": digest}
    manifest["sha256"] = manifest_sha256(manifest)
    (checkpoint / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def test_shipped_weights_are_the_checkpoints_and_are_loaded(
    pretrained: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = read_run_yaml(last_checkpoint(pretrained))["tasks"]["disjoint_from"]
    private = {str(pretrained / "private"): {"tasks": 1, "fingerprint": ""}}
    run = remade(pretrained, assets.parents[1] / "run", tasks__disjoint_from=private | sets)
    done = ship(run, assets)
    assert done.returncode == 0, done.stderr
    assert "bytes of weights, 1 leg\n" in done.stdout
    assert "Now commit the folder" in done.stdout
    stored = json.loads((assets / "bundle.json").read_text())
    checkpoint = last_checkpoint(run)
    assert stored["checkpoint_sha256"] == hashlib.sha256((checkpoint / MANIFEST_FILE).read_bytes()).hexdigest()
    assert stored["dtype"] == "bfloat16"
    (leg,) = stored["legs"]
    assert (leg["steps"], leg["seed"], leg["checkpoint_sha256"]) == (2, 0, stored["checkpoint_sha256"])
    assert leg["tokens"] > 100
    assert stored["trained_on"] == sorted(read_run_yaml(checkpoint)["tasks"]["train"])
    assert stored["disjoint_from"] == sets
    assert list(sets) == ["arcagi:evaluation", "arcagi2:evaluation"]
    assert str(pretrained) not in (assets / "bundle.json").read_text()
    for name in FILES:
        content = (assets / name).read_bytes()
        assert stored["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(bundled, "ASSETS", assets.parent)
    config = ModelConfig(name="tiny", path="bundled:tiny")
    load_tokenizer(config)
    model = load_model(config, dtype=torch.float32, device=torch.device("cpu"))
    trained = load_file(checkpoint / "model.safetensors")
    assert stored["parameters"] == model.num_parameters() == sum(tensor.numel() for tensor in trained.values())
    for name, tensor in trained.items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    assert ship(pretrained, assets).returncode == 0, "shipped again, over itself"


def test_a_later_leg_is_traced_back_to_random_weights(pretrained: Path, assets: Path, tmp_path: Path) -> None:
    first = last_checkpoint(pretrained)
    options = [
        word for word in PRETRAINED if not word.startswith(("model.init", "data.held_out", "training.max_steps"))
    ]
    later = ["model.init=pretrained", f"model.path={first}", "data.held_out=1", "training.max_steps=1"]
    assert run_train(tmp_path / "later", *options, *later) == 0
    done = ship(tmp_path / "later", assets)
    assert done.returncode == 0, done.stderr
    assert "2 legs\n" in done.stdout
    stored = json.loads((assets / "bundle.json").read_text())
    assert [leg["steps"] for leg in stored["legs"]] == [2, 1]
    learned = [set(read_run_yaml(place)["tasks"]["train"]) for place in (first, last_checkpoint(tmp_path / "later"))]
    assert learned[0] != learned[1]
    assert stored["trained_on"] == sorted(learned[0] | learned[1])
    gone = remade(tmp_path / "later", tmp_path / "orphan", model__path=str(tmp_path / "gone"))
    assert "gone, and what that was trained on is not known" in refused(gone, assets)
    unchecked = remade(pretrained, tmp_path / "unchecked", tasks__disjoint_from={})
    child = remade(tmp_path / "later", tmp_path / "child", model__path=str(last_checkpoint(unchecked)))
    assert "did not check that it shares nothing with arcagi:evaluation" in refused(child, assets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks__disjoint_from": {"arcagi2:evaluation": {}}},
            "did not check that it shares nothing with arcagi:evaluation",
        ),
        ({"training__max_steps": 9}, "its run was not finished: step 2 of 9"),
        ({"model__positions": "none"}, "it was trained with model.positions=none, unlike conf/model/tiny.yaml"),
    ],
)
def test_a_run_of_another_kind_is_refused(
    pretrained: Path, assets: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(remade(pretrained, tmp_path / "run", **changes), assets)


def test_another_architecture_or_tokenizer_is_refused(pretrained: Path, assets: Path) -> None:
    config = json.loads((assets / "config.json").read_text())
    (assets / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    words = json.loads((assets / "tokenizer.json").read_text())
    words["model"]["vocab"] = dict(
        zip(words["model"]["vocab"], reversed(words["model"]["vocab"].values()), strict=True)
    )
    (assets / "tokenizer.json").write_text(json.dumps(words))
    message = refused(pretrained, assets)
    assert f"another architecture than {assets / 'config.json'}: num_hidden_layers" in message
    assert f"another tokenizer than {assets / 'tokenizer.json'}" in message


def test_an_adapter_and_a_damaged_checkpoint_are_refused(pretrained: Path, assets: Path, tmp_path: Path) -> None:
    adapter = [word for word in PRETRAINED if word != "lora=none"]
    assert run_train(tmp_path / "adapter", *adapter, "training.max_steps=1") == 0
    assert "an adapter is no whole model: train with lora=none" in refused(tmp_path / "adapter", assets)
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    (last_checkpoint(copy) / "model.safetensors").unlink()
    assert "model.safetensors: is missing; the manifest beside it lists it" in refused(copy, assets)


def test_weights_that_are_too_large_are_refused(
    pretrained: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import ship_tiny

    monkeypatch.setattr(ship_tiny, "MOST_BYTES", 1000)
    before = sorted(assets.iterdir())
    with pytest.raises(ship_tiny.ShipError, match=r"model\.safetensors would have [\d,]+ bytes, more than 1,000"):
        ship_tiny.main(pretrained, assets)
    assert sorted(assets.iterdir()) == before
