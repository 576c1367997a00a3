"""Where the time of training steps goes: training.profile_steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from arcft.console import say
from arcft.runs.common.extras import extra

TRACE_FILE = "profile.json"
ROWS = 15
"""Operations in the table, those that take the most time."""


class StepProfiler(TrainerCallback):
    """Profiles the last `steps` steps; at the end prints the costliest operations and writes a trace into `folder`."""

    def __init__(self, folder: Path, *, steps: int, max_steps: int) -> None:
        self._path = folder / TRACE_FILE
        self._first = max(0, max_steps - steps)
        self._profile: profile | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start before step `max_steps - steps`, from 0, or before the first one of a resumed run."""
        if self._profile is None and state.global_step >= self._first:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            with extra("the profile"):
                started = profile(activities=activities)
                started.start()
                self._profile = started

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._profile is None:
            return
        with extra("the profile"):
            self._profile.stop()
            key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            say(self._profile.key_averages().table(sort_by=key, row_limit=ROWS))
            self._profile.export_chrome_trace(str(self._path))
            say(f"profile: {self._path} (open it with chrome://tracing or https://ui.perfetto.dev)")
