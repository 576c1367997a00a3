"""A Hydra callback that keeps what each job of a multirun returns to the sweeper."""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback

RETURNED: list[JobReturn] = []
RECORDED = "+hydra.callbacks.returns._target_=tests.support.job_returns.KeepReturns"
"""The override that registers it."""


class KeepReturns(Callback):
    """Appends to RETURNED."""

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        RETURNED.append(job_return)
