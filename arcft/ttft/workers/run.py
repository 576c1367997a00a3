"""Run engines: in this process, in several processes on this machine, or on a Ray cluster.

Only the driver reads the queue and writes the ledger: it answers the workers' requests and records their events. A
worker holds an engine and the units it is working on; if it dies, only the progress on those is lost, and they are
queued again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arcft.config.ttft import TtftConfig
from arcft.ttft.units import Event
from arcft.ttft.workers.pool import WorkerError, WorkerPool
from arcft.ttft.workers.processes import ProcessWorker
from arcft.ttft.workers.processes import ready as ready_processes
from arcft.ttft.workers.ray_actors import ClusterLost, RayWorker, Readiness, cluster, nodes_of
from arcft.ttft.workers.resources import Node, WorkerResources, share

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine
    from arcft.ttft.scheduling.queue import Queue

__all__ = ["WorkerError", "default_count", "drain", "drain_in_processes", "drain_on_ray", "processes_of"]

Factory = Callable[[], "Engine"]
OnEvent = Callable[[Event], None]

MAX_CLUSTERS = 3

logger = logging.getLogger(__name__)


def drain(engine: Engine, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent) -> None:
    """Process the queue in this process until it is empty, or until soon after `stopped()`."""
    for event in engine.work(lambda near: queue.pull("local", near), stopped):
        queue.record(event, "local")
        on_event(event)
    if stopped():
        # The units requeued below do not count as deaths.
        queue.stop()
    queue.requeue("local")


def drain_in_processes(
    factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    """Process the queue in `count` local processes, which share the GPUs; None for the default of `processes_of`.

    `factory` is sent to each process and called there. Raises WorkerError, see WorkerPool.work.
    """
    each = processes_of(count)
    devices = _devices()

    def start(number: int) -> ProcessWorker:
        environment = _threads(each.threads)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        return ProcessWorker(number, factory, environment)

    WorkerPool(start, ready_processes, queue, stopped=stopped, on_event=on_event).work(each.count)


def drain_on_ray(
    factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    """Process the queue in `count` actors of a Ray cluster: the one at RAY_ADDRESS, or started here by `ray start`.

    If there is none, a local cluster is started and ends with this call. A cluster that is lost is joined or started
    again, up to MAX_CLUSTERS clusters in all. `count` defaults to one actor per GPU or, without GPUs, per four cores.
    On every machine arcft, the checkpoint's files and, if adapters are saved, the run's folder must have the same path.
    `factory` is sent to each actor and called there. Raises WorkerError, see WorkerPool.work.
    """
    for _ in range(MAX_CLUSTERS):
        try:
            with cluster() as ray:
                _drain_on_cluster(ray, factory, count, queue, stopped=stopped, on_event=on_event)
            return
        except ClusterLost as lost:
            reason = str(lost)
            text = f"the Ray cluster was lost, its units are queued again: {reason}"
            logger.warning("%s", text)
            queue.note("worker", text)
    raise WorkerError(
        f"ttft.workers=ray: the cluster was lost {MAX_CLUSTERS} times, at last because {reason}; resume when it is "
        "healthy, or with ttft.workers=processes"
    )


def _drain_on_cluster(
    ray: Any, factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    each = share(nodes_of(ray), count)

    def start(number: int) -> RayWorker:
        return RayWorker(ray, number, factory, _threads(each.threads), each)

    WorkerPool(start, Readiness(ray), queue, stopped=stopped, on_event=on_event).work(each.count)


def default_count(config: TtftConfig) -> int | None:
    """The number of workers that `config` means; None for a Ray cluster, whose GPUs are counted on connecting."""
    if config.workers == "local":
        return 1
    return processes_of(config.num_workers).count if config.workers == "processes" else config.num_workers


def processes_of(count: int | None) -> WorkerResources:
    """Each process's share of this machine; by default one process per GPU or, without GPUs, per four cores."""
    # On Linux a process may be restricted to some of the cores.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return share([Node(cores=cores, gpus=len(_devices()))], count)


def _devices() -> list[str]:
    """The GPUs of this machine, restricted to CUDA_VISIBLE_DEVICES."""
    import torch

    # This does not initialise CUDA in this process.
    number = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen else [str(index) for index in range(number)]
    return names[:number]


def _threads(number: int) -> dict[str, str]:
    """Environment for torch's threads in a worker; the user's OMP_NUM_THREADS wins."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(number)), "OMP_WAIT_POLICY": "PASSIVE"}
