"""Workers as actors of a Ray cluster. Ray is imported only when needed.

A cluster can be lost: its machine, or the processes of Ray on it, are gone. Then calls of Ray do not fail but wait for
ever, so each has a deadline, and whether there still is a cluster is asked from time to time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from arcft.deadline import within
from arcft.ttft.units import Assignment
from arcft.ttft.workers.engine_host import QUIET, Message, WorkerEngine
from arcft.ttft.workers.pool import WorkerDied, WorkerError
from arcft.ttft.workers.resources import Node, WorkerResources

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine


CALL_SECONDS = 20.0
"""Ray must answer a call that does not wait for a worker within this time."""

_ASK_SECONDS = 2.0
"""How often it is asked whether there still is a cluster."""

Result = TypeVar("Result")


class ClusterLost(Exception):  # noqa: N818 - handled by joining or starting another one
    """The cluster is gone, or does not answer; the message says which."""


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
        self._actor = _answered(lambda: actor.remote(dict(environment)))
        # Sent separately, not as an argument of the actor: the environment must be set before its imports.
        fetch = partial(_unpickled, ray.cloudpickle.dumps(factory))
        self._started = _answered(lambda: self._actor.begin.remote(fetch))
        self.reference: Any = None

    def send(self, answers: Sequence[Assignment | None], stop: bool) -> None:
        self.reference = _answered(lambda: self._actor.exchange.remote(list(answers), stop))

    def receive(self) -> list[Message]:
        try:
            messages: list[Message] = _answered(lambda: self._ray.get([self._started, self.reference]))[1]
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(_cause(error)) from error
        return messages

    def close(self) -> None:
        # With a lost cluster, its actors are gone too.
        with suppress(ClusterLost, self._ray.exceptions.RayError):
            _answered(lambda: self._ray.kill(self._actor, no_restart=True))


class Readiness:
    """`ready` of a WorkerPool for the actors of one cluster."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._next_ask = 0.0

    def __call__(self, workers: Sequence[RayWorker]) -> list[RayWorker]:
        """The workers whose exchange has finished; waits up to QUIET seconds for one. Raises ClusterLost."""
        if time.monotonic() >= self._next_ask:
            if not nodes_of(self._ray):
                raise ClusterLost("none of its machines is alive")
            self._next_ask = time.monotonic() + _ASK_SECONDS
        if not workers:
            return []
        by_reference = {worker.reference: worker for worker in workers}
        references = list(by_reference)
        _answered(lambda: self._ray.wait(references, num_returns=1, timeout=QUIET))
        # Also collect all others that are ready by now.
        done, _ = _answered(lambda: self._ray.wait(references, num_returns=len(references), timeout=0))
        return [by_reference[reference] for reference in done]


@contextmanager
def cluster() -> Iterator[Any]:
    """The ray module, connected to a cluster; the connection, or a cluster started here, ends with the context."""
    if os.environ.get("RAY_ADDRESS"):
        # Otherwise Ray retries an unreachable cluster for a quarter of an hour. Read at import.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    # Otherwise Ray aborts this process a minute after a cluster is lost, also when the run has joined another one.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "1000000")
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
        with suppress(ClusterLost):
            _answered(ray.shutdown)


def _unpickled(factory: bytes) -> Callable[[], Engine]:
    import ray

    unpickled: Callable[[], Engine] = ray.cloudpickle.loads(factory)
    return unpickled


def _answered(call: Callable[[], Result]) -> Result:
    """What Ray answers to `call`; raises ClusterLost if it does not."""
    try:
        return within(CALL_SECONDS, call)
    except TimeoutError:
        raise ClusterLost(f"Ray has not answered for {CALL_SECONDS:g} s") from None


def nodes_of(ray: Any) -> list[Node]:
    """The live machines of the cluster. Raises ClusterLost."""
    resources = [node["Resources"] for node in _answered(ray.nodes) if node["Alive"]]
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
