"""Each benchmark runs alone, ends soon with --quick, and closes with one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.units import ADAPT_ROUND, Adapted, Finished, Predicted
from tests.support.arc import ARC, prediction
from tests.support.train_command import ROOT


def quick_run(script: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == script.removesuffix(".py")
    assert figures["quick"] is True
    return figures


def test_every_benchmark_is_run_here() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {
        "answer_study",
        "data_pipeline",
        "decode",
        "fuzz",
        "kills",
        "memory",
        "pretrain_study",
        "study",
        "tiny_score",
        "training",
        "ttft",
        "ttft_study",
    }


@pytest.mark.slow
def test_memory() -> None:
    (setting,) = quick_run("memory.py")["settings"]
    assert setting["estimated"] == pytest.approx(setting["measured"], rel=0.25)


@pytest.mark.slow
def test_study() -> None:
    figures = quick_run("study.py")
    assert [one["runs"] for one in figures["timings"]] == [10, 50]
    # A hundredth of a minute for each of 1,000 runs would be 0.06 seconds.
    assert figures["timings"][1]["processor_seconds"] < 10
    (row,) = figures["coverage"]
    assert 0.9 <= row["arcft"] <= 1


@pytest.mark.slow
def test_data_pipeline() -> None:
    figures = quick_run("data_pipeline.py")
    assert all(model["examples_per_second"] > 0 for model in figures["models"])


@pytest.mark.slow
def test_decode() -> None:
    figures = quick_run("decode.py")
    (model,) = figures["models"]
    assert [(one["side"], one["rows"]) for one in model["steps"]] == [(5, 1), (5, 4)]
    for one in model["steps"]:
        # As one pass takes many tokens.
        assert one["ratios"]["guess"] > one["ratios"]["jumps"] > one["ratios"]["grammar"] > 0
    for one in model["reading"]:
        assert one["ratios"]["shared"] > 1
    tasks = model["tasks"]
    assert tasks["predictions"] == 4 * tasks["tests"]
    assert tasks["ours_differ"] == tasks["guesses_differ"] == 0
    assert tasks["nodes"] > 0
    exact, rounded = model["rounding"]
    assert exact["dtype"] == "float32"
    assert exact["differing"] == 0
    assert rounded["cells"] == exact["cells"] > 0


@pytest.mark.slow
def test_ttft() -> None:
    figures = quick_run("ttft.py")
    (model,) = figures["models"]
    ways = {row["way"]: row for row in model["ways"]}
    assert list(ways) == ["a", "b", "c", "d1", "d2", "d4", "dauto"]
    for row in ways.values():
        assert row["seconds_per_task"] > 0
        assert row["peak_gib"] > 0.1
    # All learn the same from the same examples; (a) is measured on fewer tasks.
    for way in set(ways) - {"a"}:
        assert ways[way]["loss_first"] == pytest.approx(ways["c"]["loss_first"], rel=1e-4)
        assert ways[way]["loss_last"] == pytest.approx(ways["c"]["loss_last"], rel=1e-2)
    assert model["ratios"]["c"]["a"] > 1
    assert [line["tasks"] for line in figures["growth"]] == [10, 40]


@pytest.mark.slow
def test_training() -> None:
    figures = quick_run("training.py")
    assert [model["dtype"] for model in figures["models"]] == ["bfloat16", "float32"]
    for model in figures["models"]:
        setups = {row["setup"]: row for row in model["setups"]}
        assert {"arcft", "groups", "packing", "hf"} <= set(setups)
        for row in setups.values():
            assert row["tokens_per_second"] > 0
            assert row["peak_gib"] > 0.1
            # All learn the same from the same examples.
            rounding = 1e-4 if model["dtype"] == "float32" else 1e-2
            assert row["loss"] == pytest.approx(setups["hf"]["loss"], rel=rounding)


@pytest.mark.slow
def test_pretrain_study() -> None:
    figures = quick_run("pretrain_study.py")
    assert [row["variant"] for row in figures["variants"]] == ["recipe", "adamw"]
    for row in figures["variants"]:
        # A uniform guess over the tokens of the vocabulary is 6.1 nats a token.
        assert 2 < row["held_out_nats"] < 8
        assert row["tokens"] > 1000
    assert len({row["held_out_nats"] for row in figures["variants"]}) == 2


@pytest.mark.slow
def test_answer_study() -> None:
    figures = quick_run("answer_study.py")
    greedy, search = figures["variants"]
    assert (greedy["prompts"], greedy["tasks"]) == (8, 2)
    for row in (greedy, search):
        assert set(row["solved"]) == {"vote", "score", "verify"}
        for solved in row["solved"].values():
            assert 0 <= solved <= row["any_right"] <= 2
        assert row["seconds"] > 0
        assert row["scoring_seconds"] > 0
    assert greedy["any_right"] > 0


@pytest.mark.slow
def test_ttft_study() -> None:
    figures = quick_run("ttft_study.py")
    first, second = figures["variants"]
    assert (first["variant"], second["variant"]) == ("default", "embeddings")
    assert (first["difference"], first["interval"]) == (0.0, [0.0, 0.0])
    assert second["difference"] != 0
    assert len(first["tasks"]) == 2
    for row in (first, second):
        # A uniform guess over the tokens of the vocabulary is 6.1 nats a token.
        assert 2 < row["nats_per_cell"] < 8
        assert row["loss_last"] < row["loss_first"]


@pytest.mark.slow
def test_tiny_score() -> None:
    figures = quick_run("tiny_score.py")
    assert [line["fit"] for line in figures["rows"]] == [2, 2, 2]
    assert [line["all"] for line in figures["rows"]] == [400, 400, 120]
    for line in figures["rows"]:
        low, high = line["of_fit_interval"]
        assert 0 <= low <= line["of_fit"] <= high <= 1
    assert list(figures["seeds"]["solved"]) == ["0", "1"]


GPU_PARTS = (
    "tests", "unsloth", "train", "evaluate", "fit", "export", "small", "ttft_4b", "ttft_4b_loop", "decode", "training",
    "training_4b", "memory", "speed", "pretrain",
)  # fmt: skip


GPU_BENCHMARKS = ("small", "ttft_4b", "ttft_4b_loop", "decode", "training", "training_4b", "memory")


def gpu_script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/gpu.sh in small, with this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "QUICK": "1", "PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_gpu_script_describes_its_parts_and_limits_each() -> None:
    text = (ROOT / "benchmarks" / "gpu.sh").read_text(encoding="utf-8")
    assert re.findall(r"^#     (\w+)  +\S", text, re.MULTILINE) == list(GPU_PARTS)
    assert sorted(re.findall(r"\[(\w+)\]=\d+", text)) == sorted(GPU_PARTS)
    assert sorted(re.findall(r"^part_(\w+)\(\)", text, re.MULTILINE)) == sorted(GPU_PARTS)


def test_the_gpu_script_refuses_a_part_that_it_does_not_have(tmp_path: Path) -> None:
    done = gpu_script(str(tmp_path / "out"), "training", "trainning")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("there is no part trainning; the parts are tests unsloth train evaluate fit export")
    assert not (tmp_path / "out").exists()


# The other parts are made of commands that other tests run; QUICK=1 benchmarks/gpu.sh OUT tries them all.
@pytest.mark.slow
@pytest.mark.parametrize("part", ["fit", "export", "memory", "training", "speed"])
def test_parts_of_the_gpu_script_in_small(part: str, tmp_path: Path) -> None:
    done = gpu_script(str(tmp_path), part)
    assert done.returncode == 0, (tmp_path / f"{part}.txt").read_text(encoding="utf-8")[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{part}: done after ")
    figures = tmp_path / f"{part}.json"
    assert figures.exists() == (part in GPU_BENCHMARKS)
    if part == "training":
        lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
        assert [line.get("setup") for line in lines] == ["packing", "hf", None]
    if part == "speed":
        assert (tmp_path / "speed" / "speed.json").exists()


@pytest.mark.slow
def test_kills() -> None:
    figures = quick_run("kills.py")
    assert figures["kills"] == 2
    assert figures["goal_met"]


@pytest.mark.slow
def test_fuzz() -> None:
    figures = quick_run("fuzz.py")
    assert figures["goal_met"]
    assert list(figures["parts"]) == ["texts", "files", "lines", "damage"]
    for part in figures["parts"].values():
        assert part["accepted"] > 0
        assert part["refused"] > 0


@pytest.fixture
def fuzzing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fuzzing.core")


class Wrongs:
    """A part for run_cases whose cases go wrong in every way."""

    seconds_per_case = 0.2

    def __init__(self, fuzzing: ModuleType, folder: Path) -> None:
        self.fuzzing, self.folder, self.numbers = fuzzing, folder, iter(range(5))

    def case(self, rng: random.Random) -> str:
        match next(self.numbers):
            case 0:
                return "accepted"
            case 1:
                raise KeyError("nothing")
            case 2:
                while True:
                    pass
            case 3:
                before = self.fuzzing.listing(self.folder)
                (self.folder / "half").write_text("", encoding="utf-8")
                self.fuzzing.check_unchanged(self.folder, before)
            case 4:
                self.fuzzing.check_message("something is wrong", "tasks.json")
        return "refused"


def test_fuzz_finds_tracebacks_slowness_leftovers_and_messages_that_name_nothing(
    fuzzing: ModuleType, tmp_path: Path
) -> None:
    found: dict[int, str] = {}
    tally = fuzzing.run_cases("wrongs", Wrongs(fuzzing, tmp_path), range(5), 0, found.__setitem__)
    assert (tally.cases, tally.failures, tally.outcomes) == (5, 4, {"accepted": 1})
    assert found[1].startswith("traceback: KeyError: 'nothing' (test_benchmarks.py:")
    assert found[2] == "took more than 0.2 s of CPU time"
    assert found[3] == "left its folder changed: half"
    assert found[4] == "the message does not name tasks.json: 'something is wrong'"


def test_fuzz_repeats_a_case_by_its_number_alone(fuzzing: ModuleType) -> None:
    drawn: list[float] = []

    class Draws:
        seconds_per_case = 1.0

        def case(self, rng: random.Random) -> str:
            drawn.append(rng.random())
            return "accepted"

    for numbers in (range(3), [2]):
        fuzzing.run_cases("draws", Draws(), numbers, 7, lambda number, message: None)
    assert len(set(drawn[:3])) == 3
    assert drawn[3] == drawn[2]


@pytest.fixture
def ttft(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ttft")


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("kills")


def workload(**changes: Any) -> Any:
    from adaptation.workload import Workload

    values = {
        "name": "tiny",
        "note": "",
        "folder": "",
        "device": "cpu",
        "dtype": "float32",
        "steps": 2,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.05,
        "predictions": 2,
        "new_tokens": 8,
        "overrides": [],
        "blocks": [["A", "B"], ["C", "D"]],
        "fewer": {"a": 1},
        "base_parameters": 100,
        "adapter_parameters": 10,
        "layers": 2,
        "attention_width": 8,
        "max_seq_length": 64,
    }
    return Workload(**(values | changes))


def figures(tasks: int, seconds: float) -> Any:
    from adaptation.workload import Figures

    return Figures(
        tasks=tasks,
        seconds=seconds,
        cpu_seconds=seconds,
        adapt_seconds=seconds / 2,
        predict_seconds=seconds / 2,
        trained_tokens=100 * tasks,
        attention_terms=5000 * tasks,
        read_tokens=50 * tasks,
        produced_tokens=16 * tasks,
        loss_first=2.0,
        loss_last=1.0,
        peak_bytes=2**30,
        notes=[],
    )


def test_ways_take_turns_and_a_slow_one_does_the_first_tasks_of_a_block(ttft: ModuleType) -> None:
    assert list(ttft.turns(workload(), ["a", "c"])) == [
        (0, "a", ["A"]),
        (0, "c", ["A", "B"]),
        (1, "c", ["C", "D"]),
        (1, "a", ["C"]),
    ]


def test_a_ratio_is_the_median_over_blocks_of_seconds_a_task(ttft: ModuleType) -> None:
    results = {
        "a": [figures(1, 6.0), figures(1, 8.0), figures(1, 30.0)],
        "d1": [figures(2, 4.0), figures(2, 4.0), figures(2, 6.0)],
    }
    assert ttft.ratios(results, "seconds")["d1"] == {"a": 4.0, "d1": 1.0}  # of 3, 4 and 10


def test_goals_are_held_against_the_best_of_our_ways(ttft: ModuleType) -> None:
    found = {"a": {"a": 1.0}, "d1": {"a": 2.5, "d1": 1.0}, "dauto": {"a": 3.5, "d1": 0.9}}
    assert ttft.goals(workload(), found) == [
        {"than": "a", "goal": 3.0, "ratio": 3.5, "way": "dauto", "met": True},
        {"than": "d1", "goal": 0.95, "ratio": 0.9, "way": "dauto", "met": False},
    ]
    assert ttft.goals(workload(name="other"), {"d1": {"a": 2.0}}) == []


def test_the_share_of_the_peak_counts_frozen_and_trained_weights_and_attention(
    ttft: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttft, "peak_flops", lambda: 1e6)
    row = ttft.row(workload(), "d1", [figures(2, 2.0)], 1.0)
    # 200 tokens x (4 x 100 + 6 x 10) + 6 x 2 layers x 8 x 10000, in one second.
    assert row["share_of_peak"] == pytest.approx((200 * 460 + 960_000) / 1e6)
    assert (row["seconds_per_task"], row["tasks_per_hour"], row["tokens_per_second"]) == (1.0, 3600.0, 166.0)


def done_ledger(folder: Path, text: str, *, again: bool = False) -> Path:
    """A run with one task that is done, or was taken up again after that."""
    folder.mkdir()
    key = (ADAPT_ROUND, "A")
    made = prediction(np.zeros((1, 1), dtype=np.int8), "A", text=text, logprob=-1.0)
    with Ledger.create(folder / "ledger.sqlite", ARC, {}, clock=lambda: 5.0) as ledger:
        ledger.fill([(ADAPT_ROUND, "A", ["A"], 10)])
        for _ in range(1 + again):
            ledger.claim(key, "w", steps=1, first_prediction=0, predictions=1, seed=0)
            ledger.record(
                Adapted(key=key, steps=1, tokens=9, seconds=1.0, losses=(1.0,), ended="steps", adapter=None), "w"
            )
            ledger.record(Predicted(key=key, predictions=(made,), prompts=1, tokens=9, seconds=1.0), "w")
            if again:
                ledger.requeue("w", died=False)
                again = False
        ledger.record(Finished(key=key), "w")
    return folder


def test_kills_finds_what_was_lost_and_what_was_repeated(kills: ModuleType, tmp_path: Path) -> None:
    first = done_ledger(tmp_path / "first", "0")

    def compared(folder: Path) -> tuple[list[str], list[str]]:
        count = kills.Count()
        before = kills.compare(first, {}, count)
        kills.compare(folder, before, count)
        assert before.keys() == {(ADAPT_ROUND, "A")}
        return count.lost, count.repeated

    assert compared(first) == ([], [])
    assert compared(done_ledger(tmp_path / "other", "1")) == (["A in round 1"], [])
    assert compared(done_ledger(tmp_path / "twice", "0", again=True)) == ([], ["A in round 1"])
    (tmp_path / "empty").mkdir()
    with Ledger.create(tmp_path / "empty" / "ledger.sqlite", ARC, {}) as ledger:
        ledger.fill([(ADAPT_ROUND, "A", ["A"], 10)])
    assert compared(tmp_path / "empty") == (["A in round 1"], ["A in round 1"])
