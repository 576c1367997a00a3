"""What happens after each step: evaluation, the last log, and stopping on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from arcft.training.trainer import ArcftTrainer


class FlowCallback(TrainerCallback):
    """Comes after all others: transformers' own decides about logs and checkpoints, any may ask to stop."""

    def __init__(self, trainer: ArcftTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_loop_state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self.trainer
        finished = state.global_step >= state.max_steps
        if finished:
            control.should_log = True
        if trainer.can_evaluate and (finished or state.global_step % trainer.eval_steps == 0):
            control.should_evaluate = True
        trainer.evaluation_due = False
        if trainer.stop.reason is not None and not finished:
            control.should_training_stop = True
            control.should_save = True
            # Who stops a run by a signal may not wait for it long: what would be measured now is on resuming.
            trainer.evaluation_due = control.should_evaluate
            control.should_evaluate = False
