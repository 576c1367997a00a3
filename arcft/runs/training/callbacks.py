"""Callbacks of training: the history file, the tracker, the progress bar, generation metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from arcft.config.inference import InferenceConfig
from arcft.config.selection import SelectionConfig
from arcft.console import warn
from arcft.files import write_text
from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.prediction.score_candidates import predict_and_score
from arcft.protocols import DealViews, Kind, Problem
from arcft.reporting.charts.curves import HISTORY_FILE, METRIC_PREFIX
from arcft.runs.common.progress import Advance
from arcft.scoring.metrics import Scores, score_problems
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import attempts_of, make_selector
from arcft.scoring.voting import Attempts
from arcft.text.builder import ExampleBuilder
from arcft.tracking import Tracker
from arcft.training import collectives
from arcft.training.stopping import StopRequest

# Entries of transformers' logs that are neither a loss nor one of our metrics.
NOT_RECORDED = (
    "epoch",
    "total_flos",
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
)


class GenerationMetrics:
    """Predicts held-out tasks with the current model, each rank its share, and keeps the last results for the end of
    the run."""

    def __init__(
        self,
        builder: ExampleBuilder,
        deal_views: DealViews,
        tasks: Sequence[Problem],
        config: InferenceConfig,
        selection: SelectionConfig,
        kind: Kind,
        advance: Advance,
        stop: StopRequest,
    ) -> None:
        """`advance` updates the progress bar of training, which names the task being predicted."""
        self.tasks = list(tasks)
        self.predictions: list[Prediction] = []
        self.attempts: Attempts = {}
        self.scores = Scores(metrics={}, problems={})
        self._builder = builder
        self._deal_views = deal_views
        self._config = config
        self._selector = make_selector(selection, kind)
        self._num_views = selection.scoring_augmentations
        self.kind = kind
        self._advance = advance
        self._stop = stop

    def __call__(self, model: Any, step: int) -> dict[str, float] | None:
        """The kind's metrics of `model` after `step` optimizer steps; None if a stop was requested before all tasks
        were predicted."""
        shares = collectives.together(lambda: self._predict(model, step))
        if None in shares:
            collectives.agreed_stop(self._stop)
            return None
        by_task = collectives.undeal([share for share in shares if share is not None])
        self.predictions = [prediction for predictions in by_task for prediction in predictions]
        metric_set = self.kind.metrics
        candidates = self._selector.candidates(self.tasks, self.predictions)
        self.attempts = attempts_of(candidates, metric_set.attempts)
        self.scores = score_problems(self.tasks, self.predictions, self.attempts, metric_set)
        return self.scores.metrics

    def _predict(self, model: Any, step: int) -> list[list[Prediction]] | None:
        """The predictions for each task of this rank's share; None if a stop was requested before."""
        found = []
        tasks = collectives.deal(self.tasks)
        for number, task in enumerate(tasks):
            if self._stop.reason is not None:
                return None
            done = 1 + number * collectives.count()
            self._advance(step, f"predicting {done}/{len(self.tasks)} held-out tasks")
            groups = self._predict_task(model, task)
            found.append([prediction for group in groups for prediction in group])
        return found

    def _predict_task(self, model: Any, task: Problem) -> list[list[Prediction]]:
        """The predictions for each test, with fewer prompts decoded together from here on where memory runs out."""
        while True:
            try:
                groups = predict_and_score(
                    model, self._builder, self._deal_views, [task], self._config, num_views=self._num_views
                )
                return [list(group) for group in groups]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                words = release_memory(error)
            size = self._config.batch_size
            if size == 1:
                raise OutOfMemoryError(
                    f"predicting held-out tasks does not fit into memory, with inference.batch_size=1 ({words}); use a "
                    "lower inference.max_seq_length, or training.generation_tasks=0"
                )
            self._config = dataclasses.replace(self._config, batch_size=size // 2)
            warn(f"out of memory while predicting: inference.batch_size={size // 2} from here on")


class Recorder(TrainerCallback):
    """Writes every logged value to history.jsonl and to the tracker."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self._path = folder / HISTORY_FILE
        self._tracker = tracker

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines that an interrupted run wrote after the checkpoint that it resumes from."""
        if not self._path.exists():
            return
        lines = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            # Cut off by a crash, or damaged.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= state.global_step:
                    lines.append(line)
        write_text(self._path, "".join(line + "\n" for line in lines))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the finite numbers."""
        values = {
            name: float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_RECORDED
        }
        if not values:
            return
        with self._path.open("a", encoding="utf-8") as history:
            history.write(json.dumps({"step": state.global_step, **values}) + "\n")
        self._tracker.log({_chart(name): value for name, value in values.items()}, state.global_step)


def _chart(name: str) -> str:
    """Tracker names: eval_accuracy becomes eval/accuracy, loss becomes train/loss."""
    return "eval/" + name.removeprefix(METRIC_PREFIX) if name.startswith(METRIC_PREFIX) else "train/" + name


class ProgressBar(TrainerCallback):
    """Moves the progress bar and shows the last logged loss and learning rate beside it, with their step if that is not
    the step of the bar."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._words = ""
        self._logged_step = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar by a step; a step that is logged comes with its values, in `on_log`."""
        if not control.should_log and state.global_step < state.max_steps:
            self._show(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the new loss."""
        if logs and "loss" in logs:
            self._words = f"loss {logs['loss']:.3f}  lr {logs['learning_rate']:.1e}"
            self._logged_step = state.global_step
            self._show(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the loss again after predicting."""
        self._show(state.global_step)

    def _show(self, step: int) -> None:
        is_older = self._words and step != self._logged_step
        self._advance(step, f"{self._words} (step {self._logged_step})" if is_older else self._words)
