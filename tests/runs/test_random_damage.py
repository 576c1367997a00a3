"""Damage anywhere in the folder of a run is told, or changes nothing that matters."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import refuse_damaged
from arcft.cli.resume import resumed_config
from arcft.config.run import TrainConfig
from arcft.errors import ArcftError
from arcft.problems.arc.scoring.metrics import ArcMetrics
from arcft.reporting.charts.curves import read_history
from arcft.runs.evaluation.results import find_evaluation
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.scoring.predictions import read_predictions
from tests.support.arc import ARC
from tests.support.evaluate_command import evaluated, predicted, trained
from tests.support.train_command import run_train

TIMES = 12
"""Damages of each file."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and, in a folder of it, an evaluation of its checkpoint."""
    folder = trained(tmp_path_factory.mktemp("run"), "training.generation_tasks=0", "training.max_steps=2")
    evaluated(folder / "evaluation", f"checkpoint={folder}")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(run, tmp_path / "run")
    index = folder / "evaluations.jsonl"
    index.write_text(index.read_text(encoding="utf-8").replace(str(run), str(folder)), encoding="utf-8")
    return folder


def damages(path: Path, rng: random.Random) -> Iterator[str]:
    """Damage `path` in one way after another: a bit turned over, or cut off; at last it is whole again."""
    whole = path.read_bytes()
    for _ in range(TIMES):
        place = rng.randrange(len(whole))
        cut = rng.random() < 0.3
        flipped = bytes([whole[place] ^ 1 << rng.randrange(8)])
        path.write_bytes(whole[:place] + (b"" if cut else flipped + whole[place + 1 :]))
        yield f"{path.name} {'cut' if cut else 'changed'} at {place} of {len(whole)}"
    path.write_bytes(whole)


def told(read: Callable[[], Any], expected: Any, how: str) -> bool:
    """Whether `read` refuses; otherwise it must return what is expected."""
    try:
        found = read()
    except ArcftError:
        return True
    assert found == expected, how
    return False


def test_a_checkpoint_and_its_run(copy: Path) -> None:
    rng = random.Random(1)
    checkpoint = copy / "checkpoint-2"

    def read() -> Any:
        refuse_damaged(copy)
        opened = open_checkpoint(copy)
        return resumed_config(TrainConfig, "train", copy, {}, {}), opened.config, opened.checkpoint.digest

    whole = read()
    for path in [*checkpoint.iterdir(), copy / "run.yaml"]:
        refused = [told(read, whole, how) for how in damages(path, rng)]
        # In the name of its checksum alone, damage to run.yaml loses nothing.
        assert all(refused) if path.parent == checkpoint else sum(refused) >= TIMES - 2
    assert read() == whole


def test_predictions(copy: Path) -> None:
    path = copy / "evaluation" / "predictions.jsonl"
    whole = predicted(copy / "evaluation")

    def without_seconds(predictions: list[Any]) -> list[dict[str, Any]]:
        return [one.to_json("grid") | {"seconds": None} for one in predictions]

    for how in damages(path, random.Random(2)):
        try:
            found = without_seconds(read_predictions(path, ARC, allow_torn=True))
        except ArcftError:
            continue
        # Lines that were cut off are predicted again.
        assert found == without_seconds(whole)[: len(found)], how
        assert len(found) == len(whole) or "cut" in how or not path.read_bytes().endswith(b"\n"), how


def test_an_evaluation_is_found_again_only_if_it_is_whole(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = json.loads((copy / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[-1])["key"]
    folder = copy / "evaluation"
    assert find_evaluation(copy, key) == folder
    for name in ("metrics.json", "predictions.jsonl"):
        for how in damages(folder / name, random.Random(3)):
            assert find_evaluation(copy, key) is None, how
            assert f"note: {folder}: holds the same evaluation, but its files were changed" in capsys.readouterr().out
    for how in damages(copy / "evaluations.jsonl", random.Random(4)):
        assert find_evaluation(copy, key) in (None, folder), how


def test_a_history_loses_at_most_the_damaged_line(copy: Path) -> None:
    for _ in damages(copy / "history.jsonl", random.Random(5)):
        read_history(copy, ArcMetrics())


@pytest.mark.parametrize("name", ["history.jsonl", "evaluations.jsonl", "metrics.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\n", b"5\n[]\n{}\n", b'{"step": "x"}\n'])
def test_a_finished_run_resumes_in_spite_of_what_is_only_shown(name: str, content: bytes, copy: Path) -> None:
    (copy / name).write_bytes(content)
    assert run_train(copy, f"resume={copy}", "preview=false") == 0


def test_a_changed_prediction_is_not_gone_on_with(copy: Path) -> None:
    folder = copy / "evaluation"
    (folder / "metrics.json").unlink()
    path = folder / "predictions.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"test_index": 0', '"test_index": 1', 1), encoding="utf-8")
    with pytest.raises(ArcftError, match=r"line 1: is damaged, or was changed after it was written; delete the line$"):
        evaluated(folder, f"checkpoint={copy}")
    assert '"test_index": 1' in path.read_text(encoding="utf-8")
    assert not (folder / "metrics.json").exists()
