"""The end of train.py: a few new tasks, chosen by length alone, adapted to, predicted and shown."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from arcft.checkpoints import last_checkpoint, read_run_yaml
from arcft.errors import ArcftError
from arcft.problems.arc.task import GridAnswer
from arcft.reporting.adaptation import TaskRow
from arcft.reporting.outcomes import right_attempt
from arcft.reporting.pictures.problems import showcase_picture
from arcft.reporting.showcase import showcase_table
from arcft.runs.common.paths import override, with_absolute_paths
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.runs.showcase import shortest_new_tasks
from arcft.ttft.ledger.ledger import Ledger, LedgerError
from tests.config.test_config import refusal, train_config
from tests.support.arc import ARC
from tests.support.evaluate_command import arc_tasks, predicted
from tests.support.train_command import QUICK, finish, ids, run_train, start_train, tree

SHOWN = [
    *(word for word in QUICK if word != "showcase=none"),
    "showcase.tasks=2",
    "showcase.ttft.max_steps=2",
    "showcase.inference.predictions_per_test=2",
    "showcase.inference.max_new_tokens=8",
]
SHORTEST = ["66e6c45b", "00576224"]


@pytest.fixture(scope="module")
def shown_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_train(folder, *SHOWN) == 0
    return folder


def size(task: Any) -> int:
    """Stands for the length in tokens."""
    return sum(pair.input.size + pair.output.size for pair in (*task.train, *task.test))


def test_a_run_closes_with_the_shortest_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run_train(folder, *SHOWN) == 0
    out = capsys.readouterr().out
    said = (
        "Showcase: adapting the model to the 2 shortest tasks of arcagi's evaluation set that it was not trained on, "
        "each by its own demonstrations. They are chosen for length alone, and short tasks are easier than most: this "
        "is not a score on the set.\n"
    )
    assert said in out
    for name in SHORTEST:
        assert re.search(rf"^{name}\s+not solved\s+\S.*\s\d+\.\d{{3}}\s+\d+\.\d{{3}}\s+[\d.]+ s$", out, re.MULTILINE)
    assert "\nsolved in two attempts: 0 of 2 tasks\n" in out
    assert f"\nreport: {folder}/showcase/report.html\n" in out
    assert out.index("checkpoints in ") > out.index("solved in two attempts")
    assert out.endswith(f"  python evaluate.py checkpoint={folder}\n")
    assert not (folder / "showcase" / "showcase.png").exists(), "nothing was solved"
    stored = read_run_yaml(folder / "showcase")["config"]
    assert stored["checkpoint"] == str(last_checkpoint(folder))
    assert sorted(stored["data"]["task_ids"]) == sorted(SHORTEST)
    with Ledger.open(folder / "showcase" / "ledger.sqlite", ARC) as ledger:
        assert {record.name: record.steps for record in ledger.records()} == dict.fromkeys(SHORTEST, 2)
    assert sorted({p.task_id for p in predicted(folder / "showcase")}) == sorted(SHORTEST)


def test_gone_on_with_it_adapts_to_nothing_again(shown_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (shown_run / "showcase" / "predictions.jsonl").stat().st_mtime_ns
    assert run_train(shown_run, f"resume={shown_run}") == 0
    out = capsys.readouterr().out
    assert "already evaluated here" in out
    assert "\nsolved in two attempts: 0 of 2 tasks\n" in out
    assert (shown_run / "showcase" / "predictions.jsonl").stat().st_mtime_ns == before


def test_the_run_is_still_evaluated_as_one(shown_run: Path) -> None:
    assert open_checkpoint(shown_run).checkpoint.path == last_checkpoint(shown_run)


@pytest.mark.parametrize("word", ["showcase=none", "showcase.tasks=0"])
def test_without_it_nothing_is_left(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = [other for other in SHOWN if not other.startswith("showcase.")]
    assert run_train(tmp_path / "run", *small, word) == 0
    assert "Showcase" not in capsys.readouterr().out
    assert not [name for name in tree(tmp_path / "run") if name.startswith("showcase")]


def test_a_run_adapted_to_tasks_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *SHOWN, "data=leave_one_out", "data.held_out=0", ids("25ff71a9")) == 0
    assert "Showcase" not in capsys.readouterr().out


def test_only_the_quick_model_recommends_it() -> None:
    def tasks(*overrides: str) -> int:
        config = train_config(*overrides).showcase
        assert config is not None
        return config.tasks

    assert tasks() == tasks("model=tiny") == 8
    assert tasks("model=smollm2_135m") == tasks("model=qwen3_4b") == 0
    assert tasks("model=qwen3_4b", "showcase.tasks=3") == 3


def test_its_tasks_are_found_from_another_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ["data@showcase.data=folder", "showcase.data.split=null", "showcase.data.path=mine"]
    asked = train_config(*folder, "showcase.data.exclude=ids.txt")
    monkeypatch.chdir(tmp_path)
    stored = with_absolute_paths(asked).showcase
    assert stored is not None
    assert (stored.data.path, stored.data.exclude) == (str(tmp_path / "mine"), str(tmp_path / "ids.txt"))


def test_tasks_are_new_and_chosen_by_length_alone(tmp_path: Path) -> None:
    # The training task 40853293 is the evaluation task 070dd51e.
    seen, *others = arc_tasks("evaluation", "070dd51e", "be03b35f", *SHORTEST)
    options = ["data.held_out=0", "data.max_tokens=null", "training.max_seq_length=4096", "training.max_steps=1"]
    assert run_train(tmp_path / "run", *QUICK, ids("40853293", "25ff71a9", "25d8a9c8"), *options) == 0
    run = open_checkpoint(tmp_path / "run")
    names = f"showcase.data.task_ids=[{','.join(repr(task.id) for task in (seen, *others))}]"
    config = train_config("showcase.tasks=3", "showcase.data.max_tokens=null", names).showcase
    assert config is not None
    assert [task.id for task in shortest_new_tasks(config, run, size)] == ["66e6c45b", "be03b35f", "00576224"]
    assert [task.id for task in shortest_new_tasks(config, run, lambda task: 1)] == sorted(task.id for task in others)
    only_seen = train_config("showcase.tasks=3", "showcase.data.max_tokens=null", "showcase.data.task_ids=['070dd51e']")
    assert only_seen.showcase is not None
    with pytest.raises(ArcftError, match=r"showcase\.data: all of its 1 task were trained on"):
        shortest_new_tasks(only_seen.showcase, run, size)


def test_what_cannot_be_shown_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal("showcase.tasks=-1") == ["showcase.tasks=-1: at least 0, which shows nothing"]
    assert refusal("showcase.ttft.max_steps=0") == ["showcase: ttft.max_steps=0: at least 1"]
    assert refusal("showcase.ttft=x") != []
    (problem,) = refusal("showcase.data.limit=3")
    assert problem == "showcase.data.limit=3 has no effect: showcase.tasks says how many"
    (problem,) = refusal("showcase.data.held_out=2")
    assert problem == "showcase: data.held_out=2.0 has no effect in an evaluation; set it to 0"
    # Found only when the training is done: it stays, and so does the way to evaluate it.
    assert run_train(tmp_path / "run", *SHOWN, "showcase.data.max_tokens=3") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: the training is finished and saved in {tmp_path / 'run'}; its showcase failed: ")
    assert "data.max_tokens=3: every task is longer; raise it. To skip it: showcase=none" in err
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-6"
    assert not (tmp_path / "run" / "showcase").exists()


@pytest.mark.slow
def test_stopped_in_the_middle_the_training_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_train(*SHOWN, "showcase.ttft.max_steps=400", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Showcase:"):
            break
    start = time.monotonic()
    while time.monotonic() - start < 60 and not _begun(folder / "showcase"):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGTERM, err
    way = f"python train.py {override('resume', folder)}"
    assert f"the training is finished and saved; the showcase was stopped, resume with: {way}\n" in err
    assert last_checkpoint(folder).name == "checkpoint-6"
    assert json.loads((folder / "metrics.json").read_text())["step"] == 6
    code, out, err = finish(start_train(*shlex.split(way)[2:], cwd=tmp_path))
    assert code == 0, err
    assert "solved in two attempts: 0 of 2 tasks" in out


def _begun(folder: Path) -> bool:
    """Whether a unit of the ledger in `folder` was taken up."""
    if not (folder / "ledger.sqlite").is_file():
        return False
    try:
        with Ledger.open(folder / "ledger.sqlite", ARC) as ledger:
            return any(record.starts for record in ledger.records())
    except LedgerError:
        return False  # about to be begun


GRID = np.array([[1, 2], [3, 4]], dtype=np.int8)


def test_the_right_attempt_is_shown() -> None:
    truth, wrong = GridAnswer(GRID.T), GridAnswer(GRID)
    assert right_attempt(truth, [wrong, truth]) is truth
    assert right_attempt(truth, [wrong]) is wrong
    assert right_attempt(None, [wrong, truth]) is wrong
    assert right_attempt(truth, []) is None


def test_table_and_picture_of_what_is_solved(tmp_path: Path) -> None:
    rows = [
        TaskRow(task_id="66e6c45b", state="done", solved=True, votes="5, 3", loss_first=0.5, loss_last=0.0125,
                adapt_seconds=2.0, predict_seconds=1.5),
        TaskRow(task_id="be03b35f", state="failed", solved=False, votes="0", reason="out of memory"),
        TaskRow(task_id="00576224", state="done", votes="8"),
    ]  # fmt: skip
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(showcase_table(rows))
    words = [line.split() for line in console.export_text().splitlines()]
    assert words == [
        ["task", "votes", "loss", "before", "after", "time"],
        ["66e6c45b", "solved", "5,", "3", "0.500", "0.013", "3.5", "s"],
        ["be03b35f", "failed", "0", "0.00", "s"],
        ["00576224", "answered", "8", "0.00", "s"],
    ]
    tasks = arc_tasks("evaluation", "66e6c45b", "6ea4a07e")
    attempts = {(task.id, index): [answer] for task in tasks for index, answer in enumerate(task.answers)}
    showcase_picture(tmp_path / "solved.png", tasks, attempts, ARC.card)
    with Image.open(tmp_path / "solved.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20) or []}
        assert picture.width > 2 * 5 * 120
    assert (0x15, 0x91, 0x5B) in colors, "a tile of a solved task is marked green"
