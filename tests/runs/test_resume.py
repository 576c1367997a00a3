"""Going on from a checkpoint is as if the run had never stopped: to the bit, on a CPU in float32."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from arcft.checkpoints import CheckpointError, find_checkpoints, last_checkpoint, read_checkpoint
from arcft.models.adapter_config import LoraError
from arcft.training.stopping import StopRequest
from tests.support.small_training import EVALUATION, Run, adapted_model, optimizer_config, small_model, small_run

STEPS = 11
# Neither falls on the other: losses are logged over stops, and stops fall between evaluations.
EVERY = {"max_steps": STEPS, "logging_steps": 3, "eval_steps": 4, "save_steps": 5, "save_total_limit": 20}


def score(model: Any, step: int) -> dict[str, float]:
    return {"accuracy": {4: 0.5, 8: 0.5, 11: 0.1}[step]}


def new_run(folder: Path, model: Any = None, **changes: Any) -> Run:
    options = {"eval_dataset": EVALUATION, "more_metrics": score, "best_metric": "accuracy"}
    return small_run(folder, model, **(EVERY | options | changes))


class StopAt(TrainerCallback):
    def __init__(self, step: int, stop: StopRequest) -> None:
        self.step, self.stop = step, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.stop.request("the test")


def stopped_and_resumed(folder: Path, at: list[int], make: Callable[[], Any], **changes: Any) -> list[Run]:
    runs = []
    for step in at:
        stop = StopRequest()
        run = new_run(folder, make(), stop=stop, callbacks=[StopAt(step, stop)], **changes)
        run.trainer.train(last_checkpoint(folder) if runs else None)
        assert run.trainer.state.global_step == step
        runs.append(run)
    run = new_run(folder, make(), **changes)
    run.trainer.train(last_checkpoint(folder))
    return [*runs, run]


def files_of(checkpoint: Path) -> dict[str, str]:
    files = read_checkpoint(checkpoint).manifest["files"]
    # Holds the seconds that evaluations took.
    return {name: entry["sha256"] for name, entry in files.items() if name != "trainer_state.json"}


def comparable(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    timing = (
        "eval_seconds",
        "tokens_per_second",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    )
    return [{name: value for name, value in log.items() if name not in timing} for log in logs]


@pytest.mark.parametrize("at", [[5], [4], [2, 8], [10]], ids=str)
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (adapted_model, {}),
        (adapted_model, {"optimizer_config": optimizer_config("muon"), "gradient_accumulation_steps": 2}),
        (adapted_model, {"max_batch_tokens": 40, "gradient_accumulation_steps": 2}),
        (small_model, {"optimizer_config": optimizer_config("adamw_8bit"), "learning_rate": 1e-3}),
    ],
    ids=["adapter", "muon", "groups", "whole model"],
)
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, at: list[int], make: Any, changes: dict[str, Any]) -> None:
    whole = new_run(tmp_path / "whole", make(), **changes)
    whole.trainer.train()
    parts = stopped_and_resumed(tmp_path / "parts", at, make, **changes)
    last = f"checkpoint-{STEPS}"
    assert files_of(tmp_path / "parts" / last) == files_of(tmp_path / "whole" / last)
    summary = "train_loss"
    own_logs = [log for run in parts for log in comparable(run.logs.logs) if summary not in log]
    assert own_logs == [log for log in comparable(whole.logs.logs) if summary not in log]
    assert parts[-1].logs.logs[-1][summary] == whole.logs.logs[-1][summary]
    assert parts[-1].trainer.best_step == whole.trainer.best_step
    assert comparable(parts[-1].trainer.state.log_history)[:-1] == comparable(whole.trainer.state.log_history)[:-1]


@pytest.mark.parametrize("at", [4, STEPS])
def test_an_evaluation_that_was_broken_off_is_done_on_resuming(tmp_path: Path, at: int) -> None:
    whole = new_run(tmp_path / "whole")
    whole.trainer.train()
    first = new_run(tmp_path / "parts", more_metrics=lambda model, step: None if step == at else score(model, step))
    first.trainer.train()
    assert (first.trainer.state.global_step, first.trainer.evaluation_due) == (at, True)
    assert not any(log["step"] == at and "eval_loss" in log for log in first.logs.logs)
    # Stopped again before it was done: no step is taken without it.
    again = new_run(tmp_path / "parts", more_metrics=lambda model, step: None)
    again.trainer.train(last_checkpoint(tmp_path / "parts"))
    assert (again.trainer.state.global_step, again.trainer.evaluation_due) == (at, True)
    assert last_checkpoint(tmp_path / "parts").name == f"checkpoint-{at}"
    second = new_run(tmp_path / "parts")
    second.trainer.train(last_checkpoint(tmp_path / "parts"))
    assert not second.trainer.evaluation_due
    logs = [log for run in (first, second) for log in comparable(run.logs.logs) if "train_loss" not in log]
    assert logs == [log for log in comparable(whole.logs.logs) if "train_loss" not in log]
    assert second.trainer.best_step == whole.trainer.best_step
    if at < STEPS:
        last = f"checkpoint-{STEPS}"
        assert files_of(tmp_path / "parts" / last) == files_of(tmp_path / "whole" / last)


def test_workers_may_change_on_resuming(tmp_path: Path) -> None:
    whole = new_run(tmp_path / "whole")
    whole.trainer.train()
    run = new_run(tmp_path / "parts", max_steps=STEPS, num_workers=2)
    run.trainer.train(tmp_path / "whole" / "checkpoint-5")
    mine, theirs = (files_of(tmp_path / name / f"checkpoint-{STEPS}") for name in ("parts", "whole"))
    different = {name for name in mine if mine[name] != theirs[name]}
    # run.yaml holds the number of workers.
    assert different == {"run.yaml"}


def test_the_best_checkpoint_survives_a_resume(tmp_path: Path) -> None:
    stopped_and_resumed(tmp_path, [7], adapted_model, save_total_limit=1)
    # Equal scores at 4 and 8, of which 8 has the lower loss.
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-8", f"checkpoint-{STEPS}"]


def test_a_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    finished = new_run(tmp_path)
    done = finished.trainer.train()
    before = files_of(tmp_path / f"checkpoint-{STEPS}")
    run = new_run(tmp_path)
    again = run.trainer.train(last_checkpoint(tmp_path))
    assert (again.global_step, again.training_loss) == (STEPS, done.training_loss)
    assert run.trainer.best_step == finished.trainer.best_step == 8
    assert files_of(last_checkpoint(tmp_path)) == before
    for a, b in zip(run.trainer.trained_model.parameters(), finished.trainer.trained_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    new_run(tmp_path / "muon", max_steps=4, optimizer_config=optimizer_config("muon")).trainer.train()
    with pytest.raises(CheckpointError, match="resume with the optimizer that the run was started with"):
        new_run(tmp_path / "other").trainer.train(tmp_path / "muon" / "checkpoint-4")
    with pytest.raises(LoraError, match="does not fit this base model"):
        new_run(tmp_path / "other", adapted_model(target_modules=["q_proj"])).trainer.train(
            tmp_path / "muon" / "checkpoint-4"
        )
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        new_run(tmp_path / "other", small_model()).trainer.train(tmp_path / "muon" / "checkpoint-4")


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    new_run(tmp_path, max_steps=4).trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    run = new_run(tmp_path)
    for key, what in (("base_fingerprint", "base model"), ("data_fingerprint", "tasks")):
        origin = dataclasses.replace(run.trainer.saving.origin, **{key: "other"})
        run.trainer.saving = dataclasses.replace(run.trainer.saving, origin=origin)
        with pytest.raises(CheckpointError, match=f"another {what} than this run has now"):
            run.trainer.train(checkpoint)
        run = new_run(tmp_path)
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    content[1000] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: was changed"):
        run.trainer.train(checkpoint)


KILLED = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from arcft import checkpoints
from tests.runs.test_resume import new_run

folder, moment = Path(sys.argv[1]), sys.argv[2]

def die(*arguments):
    os.kill(os.getpid(), 9)

run = new_run(folder)
if moment == "between files":
    save = run.trainer._save_rng_state
    run.trainer._save_rng_state = lambda path: die() if run.trainer.state.global_step == 10 else save(path)
elif moment == "before the rename":
    rename = os.rename
    checkpoints.os.rename = lambda a, b: die() if b.name == "checkpoint-10" else rename(a, b)
run.trainer.train(sys.argv[3] if len(sys.argv) > 3 else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["between files", "before the rename"])
def test_a_run_killed_while_saving_is_resumed_to_the_bit(tmp_path: Path, moment: str) -> None:
    def run(*arguments: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True
        ).returncode

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    new_run(tmp_path / "whole").trainer.train()
    killed = tmp_path / "killed"
    assert run(str(killed), moment) == -9
    assert last_checkpoint(killed).name == "checkpoint-8"
    assert run(str(killed), "never", str(last_checkpoint(killed))) == 0
    last = f"checkpoint-{STEPS}"
    assert files_of(killed / last) == files_of(tmp_path / "whole" / last)
