"""Each setup runs in its own process, so that its memory is measured separately and all can take turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from adaptation.engine import EngineWay
from adaptation.loop import LoopWay
from adaptation.processes import ProcessWay
from adaptation.today import TrainerWay
from adaptation.workload import Figures, Way, Workload, load_workload

TITLES = {
    "a": "one process per task, Trainer",
    "b": "one process, Trainer",
    "c": "PEFT in a bare loop",
}


def title(name: str) -> str:
    return TITLES.get(name) or f"arcft, slots={name.removeprefix('d')}"


def make_way(name: str, workload: Workload) -> Way:
    """`a`, `b`, `c`, or `d` and the number of slots, or `dauto`."""
    ways = {"a": ProcessWay, "b": TrainerWay, "c": LoopWay}
    if name in ways:
        return ways[name](workload)
    slots = name.removeprefix("d")
    return EngineWay(workload, "auto" if slots == "auto" else int(slots))


class Server:
    """A setup in another process, which imports its libraries right away and loads its model on `load`."""

    def __init__(self, name: str, workload: Workload) -> None:
        # A forked process can't use CUDA where its parent did; on a CPU it saves importing everything again.
        context: Any = multiprocessing.get_context("spawn" if workload.device == "cuda" else "forkserver")
        if workload.device == "cpu":
            context.set_forkserver_preload(["adaptation.serve"])
        self.name = name
        self._connection, theirs = context.Pipe()
        path = Path(workload.folder) / "workload.json"
        self._process = context.Process(target=_serve, args=(theirs, name, path), daemon=True)
        self._process.start()
        theirs.close()

    def load(self) -> float:
        """Load the setup; returns the seconds it took."""
        self._connection.send("load")
        return self._receive()

    def answer(self, task_ids: list[str]) -> Figures:
        self._connection.send(task_ids)
        return self._receive()

    def close(self) -> None:
        # It may have died, which was already reported.
        with contextlib.suppress(OSError):
            self._connection.send(None)
        # Called again on exit, when the process has long ended.
        self._process.join()

    def _receive(self) -> Any:
        try:
            is_result, content = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{title(self.name)}: its process ended with {self._process.exitcode}") from None
        if not is_result:
            raise RuntimeError(f"{title(self.name)}:\n{content}")
        return content


@contextlib.contextmanager
def serving(name: str, workload: Workload) -> Iterator[Server]:
    server = Server(name, workload)
    try:
        yield server
    finally:
        server.close()


def _serve(connection: Connection, name: str, workload_file: Path) -> None:
    try:
        if connection.recv() is None:
            return
        begun = time.perf_counter()
        way = make_way(name, load_workload(workload_file))
        way.load()
        connection.send((True, time.perf_counter() - begun))
        while (task_ids := connection.recv()) is not None:
            way.renew()
            connection.send((True, way.answer(task_ids)))
    except Exception:
        connection.send((False, traceback.format_exc()))
