"""Engines at work: in this process, in several on this machine, or on a Ray cluster. Queue and ledger stay here.

The driver alone writes the ledger. It answers every worker's questions from the queue and records what they report; a
worker knows the files of the checkpoint, its engine, and nothing of the other workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from arcft.config.ttft import TtftConfig
from arcft.errors import ArcftError
from arcft.ttft.units import Event

if TYPE_CHECKING:
    from arcft.ttft.engine import Engine
    from arcft.ttft.queue import Queue

Factory = Callable[[], "Engine"]
OnEvent = Callable[[Event], None]


class WorkerError(ArcftError):
    """Workers can't be started, or die faster than they work."""


def drain(engine: Engine, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent) -> None:
    """Work in this process until the queue is empty, or soon after `stopped()`."""
    for event in engine.work(lambda near: queue.pull("local", near), stopped):
        queue.record(event, "local")
        on_event(event)


def drain_in_processes(
    factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    """Work in `count` processes of this machine, each with a GPU of its own where there are any."""
    raise NotImplementedError


def drain_on_ray(
    factory: Factory, count: int | None, queue: Queue, *, stopped: Callable[[], bool], on_event: OnEvent
) -> None:
    """Work in `count` actors of a Ray cluster."""
    raise NotImplementedError


def default_count(config: TtftConfig) -> int | None:
    """What null stands for."""
    return config.num_workers
