"""Workers as actors of a Ray cluster. Ray is imported only when needed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from arcft.ttft.units import Assignment
from arcft.ttft.workers.engine_host import QUIET, Message, WorkerEngine
from arcft.ttft.workers.pool import WorkerDied, WorkerError
from arcft.ttft.workers.resources import Node, WorkerResources

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine


class RayWorker:
    """An actor that holds a WorkerEngine. It ends with the driver."""

    def __init__(
        self,
        ray: Any,
        number: int,
        factory: Callable[[], Engine],
        environment: Mapping[str, str],
        share: WorkerResources,
    ) -> None:
        self.name = f"ray-{number}"
        self._ray = ray
        # With a GPU, reserve a single core: a busy cluster may have no more left.
        cores = min(1, share.cores) if share.gpus else share.cores
        actor = ray.remote(num_cpus=cores, num_gpus=share.gpus, max_restarts=0)(WorkerEngine)
        self._actor = actor.remote(dict(environment))
        # Sent separately, not as an argument of the actor: the environment must be set before its imports.
        self._started = self._actor.begin.remote(partial(_fetched, [ray.put(factory)]))
        self.reference: Any = None

    def send(self, answers: Sequence[Assignment | None], stop: bool) -> None:
        self.reference = self._actor.exchange.remote(list(answers), stop)

    def receive(self) -> list[Message]:
        try:
            messages: list[Message] = self._ray.get([self._started, self.reference])[1]
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(_cause(error)) from error
        return messages

    def close(self) -> None:
        self._ray.kill(self._actor, no_restart=True)


def ready(workers: Sequence[RayWorker]) -> list[RayWorker]:
    """The workers whose exchange has finished; waits up to QUIET seconds for one."""
    if not workers:
        return []
    ray = workers[0]._ray
    by_reference = {worker.reference: worker for worker in workers}
    ray.wait(list(by_reference), num_returns=1, timeout=QUIET)
    # Also collect all others that are ready by now.
    done, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
    return [by_reference[reference] for reference in done]


@contextmanager
def cluster() -> Iterator[Any]:
    """The ray module, connected to a cluster; the connection, or a cluster started here, ends with the context."""
    if os.environ.get("RAY_ADDRESS"):
        # Otherwise Ray retries an unreachable cluster for a quarter of an hour. Read at import.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            "ttft.workers=ray: Ray is not installed; pip install 'arcft[ray]', or use ttft.workers=processes"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    with _own_handler():
        try:
            # Without an address Ray tries RAY_ADDRESS, then a cluster on this machine, then starts one.
            ray.init(include_dashboard=False)
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            raise WorkerError(f"ttft.workers=ray: no cluster can be joined or started: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _fetched(references: Sequence[Any]) -> Callable[[], Engine]:
    """The factory that a reference stands for. In a sequence, as Ray would resolve it before the call otherwise."""
    import ray

    factory: Callable[[], Engine] = ray.get(references[0])
    return factory


def nodes_of(ray: Any) -> list[Node]:
    """The live machines of the cluster."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cores=int(each.get("CPU", 0)), gpus=int(each.get("GPU", 0))) for each in resources]


@contextmanager
def _own_handler() -> Iterator[None]:
    """Restore our SIGTERM handler, which ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _cause(error: Exception) -> str:
    """Ray's error in one line."""
    words = " ".join(str(error).split())
    detail = words.partition("Worker exit detail: ")[2] or words
    return f"{type(error).__name__}: {detail.partition(' Some common causes')[0][:300]}"
