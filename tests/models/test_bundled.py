"""A bundled model with weights: every file is held to what was shipped, and random weights need none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models import bundled
from arcft.models.bundled import ASSETS, BUNDLE_FILE, FILES, write_bundle
from arcft.models.fingerprint import base_fingerprint
from arcft.models.load import ModelError, draw_random_model, load_model, load_tokenizer
from tests.support.evaluate_command import change_byte

CPU = torch.device("cpu")
PRETRAINED = ModelConfig(name="tiny", path="bundled:tiny")
RANDOM = ModelConfig(name="tiny", path="bundled:tiny", init="random", seed=5)
WAY_OUT = r"; reinstall arcft \(in a checkout: git restore arcft/assets\)$"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled model with weights, in place of the package's."""
    folder = tmp_path / "assets" / "tiny"
    files = shutil.ignore_patterns(BUNDLE_FILE, "model.safetensors")
    shutil.copytree(ASSETS / "tiny", folder, ignore=files)
    draw_random_model(RANDOM).bfloat16().save_pretrained(folder.parent / "weights")
    shutil.copy(folder.parent / "weights" / "model.safetensors", folder)
    shutil.rmtree(folder.parent / "weights")
    write_bundle(folder, {"step": 7})
    monkeypatch.setattr(bundled, "ASSETS", folder.parent)
    return folder


def load(config: ModelConfig) -> Any:
    load_tokenizer(config)
    return load_model(config, dtype=torch.float32, device=CPU)


def test_it_loads_as_it_was_shipped(tiny: Path) -> None:
    model, drawn = load(PRETRAINED), draw_random_model(RANDOM)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, drawn.state_dict()[name].bfloat16().float()), name
    stored = json.loads((tiny / BUNDLE_FILE).read_text())
    assert (stored["format"], stored["step"], list(stored["files"])) == (1, 7, list(FILES))
    assert stored["files"]["model.safetensors"]["size"] == (tiny / "model.safetensors").stat().st_size


def test_its_fingerprint_is_that_of_a_copy_and_sees_every_byte(tiny: Path, tmp_path: Path) -> None:
    model = load(PRETRAINED)
    fingerprint = base_fingerprint(PRETRAINED, model)
    copy = ModelConfig(name="copy", path=str(shutil.copytree(tiny, tmp_path / "copy")))
    assert base_fingerprint(copy, load(copy)) == fingerprint
    assert base_fingerprint(RANDOM, model) != fingerprint
    # Between the blocks that are read of large files.
    change_byte(tmp_path / "copy" / "model.safetensors", lambda size: size // 2 + 17)
    assert base_fingerprint(copy, load(copy)) != fingerprint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["changed", "longer", "missing"])
def test_what_is_not_as_it_was_shipped_is_refused(tiny: Path, name: str, damage: str) -> None:
    path = tiny / name
    size = path.stat().st_size
    if damage == "changed":
        # Past the first brace, in the middle of a file: still JSON, or still safetensors, or neither.
        change_byte(path)
        message = rf"{path}: was changed: its sha256 is not the one in bundle\.json"
    elif damage == "longer":
        with path.open("ab") as file:
            file.write(b" ")
        message = f"{path}: has {size + 1:,} bytes, was shipped with {size:,}"
    else:
        path.unlink()
        message = rf"{path}: is missing, although bundle\.json lists it"
    if (name, damage) == ("config.json", "missing"):
        # Without an architecture there is no bundled model of that name.
        message = "model.path=bundled:tiny: the bundled models are none"
        with pytest.raises(ModelError, match=message):
            load(PRETRAINED)
        return
    with pytest.raises(ModelError, match=message + WAY_OUT):
        load(PRETRAINED)


def test_a_tokenizer_of_another_version_is_refused_for_the_weights_alone(tiny: Path) -> None:
    words = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps(words | {"model_max_length": 4096}))
    for loader in (load_tokenizer, lambda config: load_model(config, dtype=torch.float32, device=CPU)):
        with pytest.raises(ModelError, match=r"tokenizer_config\.json: has \d+ bytes, was shipped with \d+"):
            loader(PRETRAINED)
    assert load_tokenizer(RANDOM).model_max_length == 4096


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 1, "files": 3}'])
def test_a_damaged_list_is_refused(tiny: Path, content: str) -> None:
    (tiny / BUNDLE_FILE).write_text(content)
    with pytest.raises(ModelError, match=rf"bundle\.json: is damaged .*{WAY_OUT}"):
        load(PRETRAINED)


def test_a_list_of_a_later_version_is_refused(tiny: Path) -> None:
    content = json.loads((tiny / BUNDLE_FILE).read_text())
    (tiny / BUNDLE_FILE).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ModelError, match=rf"bundle\.json: has format 2; this version reads format 1{WAY_OUT}"):
        load(PRETRAINED)


def test_without_weights_only_random_ones_are_to_be_had(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / BUNDLE_FILE).unlink()
    message = r"model\.path=bundled:tiny: no pretrained weights are bundled \(.* is missing\); use model\.init=random"
    with pytest.raises(ModelError, match=message + ", or if there should be some, reinstall arcft"):
        load(PRETRAINED)
    assert load(RANDOM).num_parameters() > 0
