"""transformers' Trainer on a stream of examples, with our optimizers and schedules."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence, Sized
from typing import cast

import peft
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from arcft.config.optimizer import OptimizerConfig
from arcft.config.scheduler import SchedulerConfig
from arcft.errors import ArcftError
from arcft.text.tokens import Example
from arcft.training.arguments import check_length
from arcft.training.batches import Batch, Grouping
from arcft.training.optimizers import build_optimizer

WORKER_SECONDS = 120
"""How long a process of training.num_workers may take to send a batch."""


class StreamTrainer(Trainer):
    """Takes the examples in the stream's order, each rank its batches, and leaves model and logs as they are."""

    def __init__(
        self,
        *,
        model: PreTrainedModel | peft.PeftModel,
        args: TrainingArguments,
        train_dataset: Dataset[Example],
        grouping: Grouping,
        optimizer_config: OptimizerConfig,
        scheduler_config: SchedulerConfig,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        """Raise TrainingError if `train_dataset` has too few examples for `args.max_steps`."""
        self.optimizer_config = optimizer_config
        self.scheduler_config = scheduler_config
        self.trained_model = model
        check_length(train_dataset, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=grouping,  # type: ignore[arg-type]
            train_dataset=train_dataset,
            callbacks=list(callbacks),
        )
        # It prints every log as a dictionary.
        self.remove_callback(PrinterCallback)
        # Our loss divides by the number of supervised tokens of the whole step, whatever the model's own would do.
        self.model_accepts_loss_kwargs = True
        # Gradients are added up by collectives.add_up, without a wrapper around the model.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer over the trainable parameters."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.trained_model, self.optimizer_config, self.args.learning_rate)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The configured learning-rate schedule."""
        if self.lr_scheduler is None:
            factor = self.scheduler_config.factors(num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or cast(torch.optim.Optimizer, self.optimizer), factor
            )
            # Without this flag a second call of train() would continue the first one's schedule.
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Not counted: that would iterate over all parameters for every batch."""
        return 0

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the stream; a process that makes them is waited for WORKER_SECONDS at most."""
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers:
            # accelerate wraps the loader that does the work.
            getattr(loader, "base_dataloader", loader).timeout = WORKER_SECONDS
        return loader

    def fetch(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next `count` batches, or as many as there are. Raise ArcftError where a process that makes them fails."""
        try:
            return list(itertools.islice(batches, count))
        except RuntimeError as error:
            # torch has no class of its own for either.
            if "DataLoader timed out" not in str(error) and "exited unexpectedly" not in str(error):
                raise
            # A stopped process would be waited for again at the end of this one.
            for process in multiprocessing.active_children():
                process.kill()
            raise ArcftError(
                f"training.num_workers={self.args.dataloader_num_workers}: a process that makes examples died, or sent "
                f"none for {WORKER_SECONDS} s ({str(error).partition(chr(10))[0]}); resume the run from its last "
                "checkpoint, with training.num_workers=0 if it happens again"
            ) from error

    def _get_train_sampler(self, train_dataset: Dataset[Example] | None = None) -> SequentialSampler:
        # The stream is already shuffled, and resuming means jumping to an index.
        return SequentialSampler(cast(Sized, train_dataset or self.train_dataset))
