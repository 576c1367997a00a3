"""One evaluation: its config settled, its folder started, and then carried out with the model libraries loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.config.run import EvaluateConfig
from arcft.config.ttft import TtftConfig
from arcft.console import note
from arcft.models.backend import import_backend
from arcft.runs.adaptation.run_folder import start_evaluation_folder
from arcft.runs.common.command import stopped
from arcft.runs.common.paths import evaluation_with_absolute_paths
from arcft.runs.common.signals import resumable
from arcft.runs.setup.ttft_settings import refuse_without_effect, resolve_ttft


def evaluate(
    config: EvaluateConfig, folder: Path, *, explicit: Sequence[str] = (), show: Callable[..., Any] | None = None
) -> Mapping[str, float]:
    """Evaluate what `config` names and write everything into `folder`; resumes what an earlier call left there.

    `explicit` are the keys that the user set by hand: they may not contradict a checkpoint. `show` prints the outcome
    of test-time fine-tuning in place of arcft.runs.adaptation.evaluate.show_outcome.

    Returns the metrics as trackers name them (`eval/accuracy`): none after a dry run, for a pattern of checkpoints, or
    where no answer is known. Raises ArcftError, before anything is written, where checkpoints, tasks or predictions
    can't be evaluated; Stopped after a signal.
    """
    config = evaluation_with_absolute_paths(config)
    refuse_without_effect(config, explicit)
    settings = None
    if isinstance(config.ttft, TtftConfig):
        settings = resolve_ttft(config, explicit)
        config = settings.config
        for text in settings.notes:
            note(text)
    elif config.model is not None:
        import_backend(config.model)
    with contextlib.ExitStack() as stack:
        if settings and not config.dry_run:
            stack.enter_context(resumable(stopped("evaluate", folder)))
            stack.enter_context(start_evaluation_folder(settings, folder))
        # Imported only now: it takes seconds, and a run that is stopped meanwhile can be resumed already.
        from arcft.runs.evaluation.run import run_evaluation

        return run_evaluation(config, settings, folder, explicit, show)
