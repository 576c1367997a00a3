"""Engines at work: in this process, in several on this machine, or on a Ray cluster.

The driver alone reads the queue and writes the ledger: it answers every worker's questions and records what they
report. A worker holds an engine and the units it works on; one that dies loses no more than those, and they are queued
again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from arcft.config.ttft import TtftConfig
from arcft.ttft.units import Event
from arcft.ttft.workers.pool import WorkerError, WorkerPool
from arcft.ttft.workers.processes import ProcessWorker
from arcft.ttft.workers.processes import ready as ready_processes
from arcft.ttft.workers.ray_actors import RayWorker, cluster, nodes_of
from arcft.ttft.workers.ray_actors import ready as ready_actors
from arcft.ttft.workers.resources import Node, WorkerResources, share

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine
    from arcft.ttft.scheduling.queue import Queue

__all__ = ["WorkerError", "default_count", "drain", "drain_in_processes", "drain_on_ray", "processes_of"]

Factory = Callable[[], "Engine"]
OnEvent = Callable[[Event], None]


def drain(engine: Engine, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent) -> None:
    """Work in this process until the queue is empty, or until soon after `stopped()`."""
    for event in engine.work(lambda near: queue.pull("local", near), stopped):
        queue.record(event, "local")
        on_event(event)
    if stopped():
        # So that what is given back is no death.
        queue.stop()
    queue.requeue("local")


def drain_in_processes(
    factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    """Work in `count` processes of this machine, which share its GPUs; None for what `processes_of` says.

    `factory` is sent to each of them, and called there. Raises WorkerError, see WorkerPool.work.
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
    """Work in `count` actors of a Ray cluster: the one that RAY_ADDRESS names or that `ray start` began here.

    Where there is none, a local one is started, which ends with this call. None is one actor for each GPU, or where
    there are none for each four cores. On every machine arcft, the files of the checkpoint and, where adapters are
    kept, the run's folder must lie at the same place. `factory` is sent to each actor, and called there. Raises
    WorkerError, see WorkerPool.work.
    """
    with cluster() as ray:
        each = share(nodes_of(ray), count)

        def start(number: int) -> RayWorker:
            return RayWorker(ray, number, factory, _threads(each.threads), each)

        WorkerPool(start, ready_actors, queue, stopped=stopped, on_event=on_event).work(each.count)


def default_count(config: TtftConfig) -> int | None:
    """How many workers `config` stands for; None for a Ray cluster, whose GPUs are counted when it is joined."""
    if config.workers == "local":
        return 1
    return processes_of(config.num_workers).count if config.workers == "processes" else config.num_workers


def processes_of(count: int | None) -> WorkerResources:
    """What each process gets of this machine; by default there is one for each GPU, or else for each four cores."""
    # On Linux a process may have fewer cores than the machine.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return share([Node(cores=cores, gpus=len(_devices()))], count)


def _devices() -> list[str]:
    """The GPUs of this machine, or those of them that CUDA_VISIBLE_DEVICES names."""
    import torch

    # Does not initialise CUDA in this process.
    number = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen else [str(index) for index in range(number)]
    return names[:number]


def _threads(number: int) -> dict[str, str]:
    """For torch in a worker; where the user has set it, that holds."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(number)), "OMP_WAIT_POLICY": "PASSIVE"}
