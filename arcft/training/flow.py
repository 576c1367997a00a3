"""What happens after each optimizer step: evaluation, the last log, and stopping on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from arcft.training.collectives import agreed_stop
from arcft.training.stopping import StopRequest


class FlowCallback(TrainerCallback):
    """Decides when to evaluate and when to stop.

    It has to be the last callback: transformers' own sets the logging and saving flags, and any may ask to stop.
    """

    def __init__(self, *, eval_steps: int, can_evaluate: bool, stop: StopRequest, on_begin: Callable[[], None]) -> None:
        """Configure the callback.

        Args:
            eval_steps: Evaluate after this many optimizer steps, and after the last one.
            can_evaluate: Whether there is anything to evaluate.
            stop: Checked after each step.
            on_begin: Called when transformers has set up the state of its loop, before the first step.
        """
        self.evaluation_due = False
        """Whether the run stopped at a step whose evaluation is left for resuming."""
        self._eval_steps = eval_steps
        self._can_evaluate = can_evaluate
        self._stop = stop
        self._on_begin = on_begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by transformers before the first step."""
        self._on_begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by transformers after each optimizer step: set the flags of `control`."""
        finished = state.global_step >= state.max_steps
        if finished:
            control.should_log = True
        if self._can_evaluate and (finished or state.global_step % self._eval_steps == 0):
            control.should_evaluate = True
        self.evaluation_due = False
        if agreed_stop(self._stop) is not None and not finished:
            control.should_training_stop = True
            control.should_save = True
            # Whoever stops a run by a signal does not wait for an evaluation; it is made up for on resuming.
            self.evaluation_due = control.should_evaluate
            control.should_evaluate = False
