"""What happens beside training: the history file, the tracker, the progress bar, generation metrics."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from arcft.config.inference import InferenceConfig
from arcft.config.selection import SelectionConfig
from arcft.files import write_text
from arcft.prediction.score_candidates import predict_and_score
from arcft.problems.arc.scoring.metrics import Scores, score_tasks
from arcft.problems.arc.task import Task
from arcft.protocols import DealViews
from arcft.reporting.charts.curves import HISTORY_FILE, METRIC_PREFIX
from arcft.runs.common.progress import Advance
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import make_selector
from arcft.scoring.voting import Attempts
from arcft.text.builder import ExampleBuilder
from arcft.tracking import Tracker
from arcft.training.stopping import StopRequest

# What transformers adds to its logs that is neither a loss nor a metric of ours.
NOT_RECORDED = (
    "epoch",
    "total_flos",
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
)


class GenerationMetrics:
    """Predicts held-out tasks with the model as it is, and keeps the last outcome for the closing of the run."""

    def __init__(
        self,
        builder: ExampleBuilder,
        deal_views: DealViews,
        tasks: Sequence[Task],
        config: InferenceConfig,
        selection: SelectionConfig,
        advance: Advance,
        stop: StopRequest,
    ) -> None:
        """`advance` moves the training bar; here it says which task is being predicted."""
        self.tasks = list(tasks)
        self.predictions: list[Prediction] = []
        self.attempts: Attempts = {}
        self.scores = Scores(metrics={}, tasks={})
        self._builder = builder
        self._deal_views = deal_views
        self._config = config
        self._selector = make_selector(selection)
        self._num_views = selection.scoring_augmentations
        self._advance = advance
        self._stop = stop

    def __call__(self, model: Any, step: int) -> dict[str, float] | None:
        """The metrics of scoring/metrics by name, for the model after `step` optimizer steps; None when it was asked to
        stop before all tasks were predicted."""
        self.predictions = []
        for number, task in enumerate(self.tasks, 1):
            if self._stop.reason is not None:
                return None
            self._advance(step, f"predicting {number}/{len(self.tasks)} held-out tasks")
            groups = predict_and_score(
                model, self._builder, self._deal_views, [task], self._config, num_views=self._num_views
            )
            self.predictions += [prediction for group in groups for prediction in group]
        self.attempts = self._selector.attempts(self.tasks, self.predictions)
        self.scores = score_tasks(self.tasks, self.predictions, self.attempts)
        return self.scores.metrics


class Recorder(TrainerCallback):
    """Writes every logged value to history.jsonl and to the tracker."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self._path = folder / HISTORY_FILE
        self._tracker = tracker

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an interrupted run recorded after the step that it now goes on from."""
        if not self._path.exists():
            return
        lines = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # cut off by a crash
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
        """Record what is a finite number."""
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
    """eval_accuracy as eval/accuracy, loss as train/loss."""
    return "eval/" + name.removeprefix(METRIC_PREFIX) if name.startswith(METRIC_PREFIX) else "train/" + name


class ProgressBar(TrainerCallback):
    """Moves the progress bar, with the last loss and learning rate beside it."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._words = ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step more."""
        self._advance(state.global_step, self._words)

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
            self._advance(state.global_step, self._words)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the loss again in place of what was predicted."""
        self._advance(state.global_step, self._words)
