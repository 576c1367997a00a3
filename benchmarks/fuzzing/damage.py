"""Damage in the folders of a real training run and of a real evaluation with test-time fine-tuning."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcft.checkpoints import MANIFEST_FILE, read_run_yaml
from arcft.cli.resume import resumed_config
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.errors import ArcftError
from arcft.problems.arc.kind import ArcKind
from arcft.reporting.charts.curves import read_history
from arcft.runs.adaptation.run_folder import LEDGER_FILE, open_ledger
from arcft.runs.evaluation.results import PREDICTIONS_FILE, find_evaluation
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.runs.setup.ttft_settings import resolve_ttft
from arcft.scoring.predictions import read_predictions
from fuzzing.core import WrongError, check_message

ROOT = Path(__file__).resolve().parents[2]
KIND = ArcKind()
COMMON = ("tracking=none", "data=arc1", "data.max_tokens=500")
TRAIN = (
    "preview=false", "showcase=none", "data.limit=4", "data.held_out=1", "training.max_steps=2",
    "training.generation_tasks=0", "model.init=random",
)  # fmt: skip
EVALUATE = (
    "data.limit=2", "data.split=evaluation", "ttft=per_task", "ttft.max_steps=1", "ttft.slots=1",
    "inference.predictions_per_test=2", "inference.max_new_tokens=8",
)  # fmt: skip
NOT_STATE = (".hydra", ".log", ".png", ".html", ".lock")
"""Written for people; nothing reads them."""

LEDGER_SHARE = 0.4


class Damage:
    """One damage at a time, met by what the programs read at their start: an error that names the damaged file, or the
    same as without the damage."""

    seconds_per_case = 10.0

    def __init__(self, folder: Path) -> None:
        self.run, self.evaluation = folder / "run", folder / "evaluation"
        _start("train.py", *COMMON, *TRAIN, f"hydra.run.dir={self.run}")
        _start("evaluate.py", *COMMON, *EVALUATE, f"checkpoint={self.run}", f"hydra.run.dir={self.evaluation}")
        self.whole = {
            path: path.read_bytes()
            for place in (self.run, self.evaluation)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }
        self.files = [path for path in self.whole if not any(part in str(path) for part in NOT_STATE)]
        self.checkpoint = next(self.run.glob("checkpoint-*"))
        (self.key,) = read_run_yaml(self.evaluation)["keys"].values()
        self.readers: dict[Callable[[], Any], bool] = {
            # Whether any difference is wrong: what is not vital is read as far as it can be.
            self._checkpoint: True,
            self._resumed_training: True,
            self._resumed_evaluation: True,
            self._history: False,
            self._index: False,
            self._predictions: False,
        }
        self.expected = {reader: reader() for reader in self.readers}
        self._restore()

    def case(self, rng: random.Random) -> str:
        ledger = self.evaluation / LEDGER_FILE
        path = ledger if rng.random() < LEDGER_SHARE else rng.choice(self.files)
        if path == ledger and rng.random() < 0.5:
            what = _change_row(path, rng)
        else:
            what = _change_bytes(path, self.whole[path], rng)
        if path == ledger and (not path.exists() or not path.stat().st_size):
            # As a run leaves it that is killed at its start: it begins anew.
            self._restore()
            return "skipped"
        names = self._names()
        is_refused = False
        try:
            for reader, is_strict in self.readers.items():
                try:
                    found = reader()
                except ArcftError as error:
                    is_refused = True
                    check_message(
                        str(error), str(path if path.exists() and path.name != MANIFEST_FILE else self.run.parent)
                    )
                except Exception as error:
                    error.add_note(f"{path.name}: {what}")
                    raise
                else:
                    if is_strict and found != self.expected[reader]:
                        raise WrongError(f"{reader.__name__} read something else")
                if self._names() != names:
                    raise WrongError(f"{reader.__name__} left {self._names() ^ names}")
        except WrongError as error:
            raise WrongError(f"{path.relative_to(self.run.parent)}: {what}: {error}") from None
        finally:
            self._restore()
        return "refused" if is_refused else "accepted"

    def _checkpoint(self) -> Any:
        """What evaluate.py checkpoint= and train.py lora.start= read."""
        run = open_checkpoint(self.run)
        return run.config, run.tasks, run.checkpoint

    def _resumed_training(self) -> Any:
        return resumed_config(TrainConfig, "train", self.run, {}, {}), open_checkpoint(self.run).checkpoint

    def _resumed_evaluation(self) -> Any:
        settings = resolve_ttft(resumed_config(EvaluateConfig, "evaluate", self.evaluation, {}, {}), [])
        with open_ledger(settings, self.evaluation) as ledger:
            ledger.recover()
            return settings, ledger.records(), ledger.predictions(), ledger.current_predictions(), ledger.notes()

    def _history(self) -> Any:
        return read_history(self.run, KIND.metrics)

    def _index(self) -> Any:
        return find_evaluation(self.run, self.key)

    def _predictions(self) -> Any:
        return read_predictions(self.evaluation / PREDICTIONS_FILE, KIND)

    def _names(self) -> set[Path]:
        return {path for place in (self.run, self.evaluation) for path in place.rglob("*") if path.is_file()}

    def _restore(self) -> None:
        for path in self._names() - self.whole.keys():
            path.unlink()
        for path, content in self.whole.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


def _start(script: str, *overrides: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / script), *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _change_bytes(path: Path, content: bytes, rng: random.Random) -> str:
    """Change the file at `path`; returns what was done, in words."""
    place, end = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    match rng.randrange(9):
        case 0:
            path.unlink()
            return "removed"
        case 1:
            path.write_bytes(content[:place])
            return f"cut off at byte {place}"
        case 2:
            path.write_bytes(b"")
            return "emptied"
        case 3:
            path.write_bytes(content + rng.choice((b"\n", b"\x00", b"}", content)))
            return "something appended"
        case 4:
            size = min(end - place, 512)
            path.write_bytes(content[:place] + bytes(size) + content[place + size :])
            return f"zeros in {size} bytes from {place}"
        case 5:
            path.write_bytes(content[:place] + content[end:])
            return f"bytes {place} to {end} removed"
        case 6 if found := list(re.finditer(rb"\d", content)):
            digit = rng.choice(found).start()
            path.write_bytes(content[:digit] + b"%d" % ((content[digit] - 47) % 10) + content[digit + 1 :])
            return f"the digit at byte {digit} raised"
        case _:
            bit = rng.randrange(8)
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            return f"bit {bit} of byte {place} flipped"


def _change_row(path: Path, rng: random.Random) -> str:
    """Change one value in one row of the ledger at `path`; returns what was done, in words."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        table = rng.choice(("units", "units", "predictions", "predictions", "config", "tasks", "notes", "sessions"))
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column = rng.choice(columns)
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        if not rows:
            return "nothing"
        number, value = rng.choice(rows)
        if rng.random() < 0.15:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
            return f"row {number} of {table} removed"
        other = _changed_value(value, rng)
        try:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (other, number))
        except sqlite3.IntegrityError:
            return "nothing"
        return f"{table}.{column} of row {number} changed from {value!r:.80} to {other!r:.80}"
    finally:
        connection.close()


def _changed_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(('"', "0", "7", "{", "", "x", "\x1b")) + value[place + 1 :]
    if isinstance(value, int | float) and rng.random() < 0.6:
        return value + rng.choice((1, -1, 1000))
    return rng.choice((None, "", "x", -1, 2**62, 1.5, b"\xff", json.dumps({"a": 1})))
