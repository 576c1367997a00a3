"""The training loop: transformers' Trainer with our loss, schedule, optimizer, evaluation and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import peft
import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from arcft import checkpoints
from arcft.config.optimizer import OptimizerConfig
from arcft.config.scheduler import SchedulerConfig
from arcft.errors import ArcftError
from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.models.base_model import base_model
from arcft.models.packed_attention import use_packed_attention
from arcft.models.sharding import Strategy, gathered_weights, whole
from arcft.protocols import Positions
from arcft.text.tokens import Example
from arcft.training import collectives
from arcft.training.arguments import check_length
from arcft.training.batches import (
    Batch,
    Collate,
    Group,
    StepShare,
    add_idle_passes,
    collate,
    collate_in_groups,
    pack,
    share_of,
)
from arcft.training.compiling import compile_layers, not_compiled
from arcft.training.finite import SMALLEST_SCALE, check_finite
from arcft.training.flow import FlowCallback
from arcft.training.loss import mean_loss, summed_cross_entropy
from arcft.training.optimizers import build_optimizer
from arcft.training.passes import Passes
from arcft.training.rank_states import OPTIMIZER_FILE, SCHEDULER_FILE, RankStates, gather_states, load_optimizer
from arcft.training.saving import STATE_FILE, LoopState, Saving, check_origin, load_weights, save_weights
from arcft.training.stopping import StopRequest
from arcft.training.throughput import Throughput

WORKER_SECONDS = 120
"""How long a process of training.num_workers may take to send a batch."""


class ArcftTrainer(Trainer):
    """Trains on a stream of examples, in the stream's order.

    The loss is the mean over all supervised tokens of an optimizer step, however they are split into batches, and
    batches by `max_batch_tokens` into groups: without dropout, the gradient of a step is the same up to rounding,
    whatever the split. A loss or gradient norm that is not finite ends the run before the step. Checkpoints are atomic,
    and resuming from one continues as if the run had never stopped: bit for bit on a CPU in float32.

    Evaluations report `eval_loss`, the mean over the supervised tokens of `eval_dataset`, and what `more_metrics` adds.
    They leave the random numbers of training alone. The best checkpoint has the highest `best_metric`, and of these the
    lowest `eval_loss`; it is saved at once and never rotated away.

    Several ranks, connected by torch.distributed, each take their share of the batches of a step and of an evaluation.
    They make the same steps as one process that accumulates as many batches, stop at the same step, and fail together;
    rank 0 writes.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | peft.PeftModel,
        args: TrainingArguments,
        train_dataset: Dataset[Example],
        eval_dataset: Sequence[Example] | None,
        pad_id: int,
        optimizer_config: OptimizerConfig,
        scheduler_config: SchedulerConfig,
        eval_steps: int,
        saving: Saving,
        max_batch_tokens: int | None = None,
        packing: bool = False,
        compile: bool = False,
        positions: Positions | None = None,
        more_metrics: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None,
        best_metric: str | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        stop: StopRequest | None = None,
        sharding: Strategy | None = None,
    ) -> None:
        """Set up a run; nothing is trained yet.

        Args:
            model: The model with what is trainable set: all weights, or an adapter.
            args: From make_training_arguments.
            train_dataset: Enough examples for `args.max_steps`, already shuffled. Raise TrainingError otherwise.
            eval_dataset: Held-out examples for `eval_loss`; None or empty for none.
            pad_id: Token that pads batches on the right.
            optimizer_config: Used by `create_optimizer`.
            scheduler_config: Used by `create_scheduler`.
            eval_steps: Evaluate after this many optimizer steps, and after the last one.
            saving: What goes into checkpoints.
            max_batch_tokens: Maximum tokens per forward pass, padding included; None: a batch is one pass.
            packing: Lay the examples of a pass in one row without padding; the model has to allow that (see
                models/packed_attention.py).
            compile: Compile the model's layers for training; evaluations run them as written.
            positions: Position ids that jump; None counts from 0.
            more_metrics: Called as `more_metrics(model, step)` in evaluations, under the trainer's autocast; its
                metrics are logged as `eval_NAME`. It returns None if it was asked to stop; the evaluation is then
                repeated on resuming.
            best_metric: The metric of `more_metrics` that chooses the best checkpoint; None for `eval_loss` alone.
            callbacks: Additional callbacks of transformers.
            stop: Checked after each step.
            sharding: How `model` was sharded (arcft.models.sharding); None if it was not.
        """
        self.optimizer_config = optimizer_config
        self.scheduler_config = scheduler_config
        self.eval_steps = eval_steps
        self.saving = saving
        self.max_batch_tokens = max_batch_tokens
        self.more_metrics = more_metrics
        self.best_metric = best_metric
        self.stop = stop or StopRequest()
        self.sharding = sharding
        self.throughput = Throughput()
        self._step_loss = torch.zeros((), dtype=torch.float64)
        self._passes = Passes(self._in_smaller_groups)
        self._best_rank: tuple[float, float] | None = None
        self._resumed_from: Path | None = None
        self.trained_model = model
        self.eval_examples = eval_dataset or []
        self.packing = packing
        if compile:
            compile_layers(model)
        if packing:
            use_packed_attention(model)
            self._collate: Collate = functools.partial(pack, positions=positions)
        else:
            self._collate = functools.partial(collate, pad_id=pad_id, positions=positions)
        self._flow = FlowCallback(
            eval_steps=eval_steps,
            can_evaluate=bool(self.eval_examples) or more_metrics is not None,
            stop=self.stop,
            on_begin=self._restore_loop_state,
        )
        check_length(train_dataset, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=functools.partial(  # type: ignore[arg-type]
                collate_in_groups, collate=self._collate, max_batch_tokens=max_batch_tokens, packing=packing
            ),
            train_dataset=train_dataset,
            callbacks=[*callbacks, self._flow],
        )
        # It prints every log as a dictionary.
        self.remove_callback(PrinterCallback)
        # Our loss divides by the number of supervised tokens of the whole step, whatever the model's own would do.
        self.model_accepts_loss_kwargs = True
        # Gradients are added up by collectives.add_up, without a wrapper around the model.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        if collectives.count() > 1:
            # Dropout differs from rank to rank.
            torch.manual_seed(args.seed + collectives.rank())

    @property
    def run_folder(self) -> Path:
        """Where checkpoints are written."""
        return Path(str(self.args.output_dir))

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint so far; None before the first evaluation."""
        return self.state.best_global_step

    @property
    def evaluation_due(self) -> bool:
        """Whether the run stopped at a step whose evaluation is left for resuming."""
        return self._flow.evaluation_due

    def train(self, resume_from_checkpoint: str | Path | None = None) -> TrainOutput:  # type: ignore[override]
        """Train to `max_steps`, or until asked to stop; from the beginning, or from a checkpoint of this run.

        After a stop `state.global_step` is below `state.max_steps`, `stop.reason` says why, and the last checkpoint
        is of that step. Raise NonFiniteError, OutOfMemoryError, or CheckpointError for a
        checkpoint that is damaged or of another run.
        """
        self._resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        try:
            return self._train()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory after step {self.state.global_step}, outside the forward and backward passes "
                f"({release_memory(error)}); use model.quantization=nf4 or a smaller adapter, or train where there is "
                "more memory"
            ) from None

    def _train(self) -> TrainOutput:
        collectives.same_weights(self.trained_model)
        if self._resumed_from is None:
            return super().train()
        check_origin(checkpoints.read_checkpoint(self._resumed_from), self.saving.origin)
        state = TrainerState.load_from_json(str(self._resumed_from / STATE_FILE))
        if state.global_step < self.args.max_steps:
            return super().train(resume_from_checkpoint=str(self._resumed_from))
        # Already finished: Trainer would take another step before it checks the limit.
        load_weights(self.trained_model, self._resumed_from)
        self.state = state
        loop_state = LoopState.read(self._resumed_from)
        self._restore_best_and_evaluate(loop_state)
        return TrainOutput(state.global_step, loop_state.loss_before / state.global_step, {})

    # Optimization

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

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """This rank's batches of one optimizer step, and the number of supervised tokens in those of all ranks, an
        int64 scalar on `device`."""
        batches: list[Batch] = []

        def fetch() -> StepShare:
            batches.extend(self._fetch(epoch_iterator, num_batches))
            return share_of(batches)

        shares = collectives.together(fetch)
        self._passes.begin(batches)
        self.throughput.tokens += sum(share.tokens for share in shares)
        if self.sharding is not None:
            # Every pass gathers weights from all ranks.
            add_idle_passes(batches, [share.passes for share in shares])
        return batches, torch.tensor(sum(share.supervised for share in shares), device=device)

    def _fetch(self, epoch_iterator: Iterator[Batch], num_batches: int) -> list[Batch]:
        try:
            return list(itertools.islice(epoch_iterator, num_batches))
        except RuntimeError as error:
            # torch has no class of its own for either.
            if "DataLoader timed out" not in str(error) and "exited unexpectedly" not in str(error):
                raise
            # A stopped process would be waited for again at the end of this one.
            for process in multiprocessing.active_children():
                process.kill()
            raise ArcftError(
                f"training.num_workers={self.args.dataloader_num_workers}: a process that makes examples died, or sent "
                f"none for {WORKER_SECONDS} s ({str(error).splitlines()[0]}); resume the run from its last checkpoint, "
                "with training.num_workers=0 if it happens again"
            ) from error

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward pass of a batch, group by group; returns its share of the step's loss (scalar, nats).

        With several ranks the last batch of a step returns the loss of all batches and ranks, and the others zero. If
        memory runs out, the step starts over in smaller passes; raise OutOfMemoryError if there are none.
        """
        loss = self._loss_of(model, inputs, num_items_in_batch)
        return loss if collectives.count() == 1 else self._loss_of_all(loss)

    def _loss_of_all(self, loss: torch.Tensor) -> torch.Tensor:
        self._step_loss += loss.cpu()
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        total = collectives.add_up(self._step_loss, self.trained_model.parameters())
        self._step_loss.zero_()
        check_finite("loss", total, self.state.global_step + 1, self.args.learning_rate)
        return total.to(loss)

    def _loss_of(self, model: nn.Module, batch: Batch, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        todo = [batch]
        while True:
            try:
                return [self._pass_groups(model, each, num_items_in_batch) for each in todo][-1]
            except (RuntimeError, MemoryError) as error:
                # The passes of a sharded model wait for those of the other ranks.
                if not is_out_of_memory(error) or self.sharding is not None:
                    raise
                self._take_smaller_passes(error, batch)
            model.zero_grad()
            todo = self._passes.until(batch)

    def _pass_groups(
        self, model: nn.Module, batch: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        losses = [
            super(ArcftTrainer, self).training_step(model, group, num_items_in_batch)
            for group in self._passes.of(batch)["groups"]
        ]
        return torch.stack(losses).sum()

    def _take_smaller_passes(self, error: BaseException, batch: Batch) -> None:
        checkpointed = self.args.gradient_checkpointing or self._passes.gradient_checkpointing
        self._passes.lower(error, batch, self.state.global_step + 1, checkpointed=checkpointed)
        if self._passes.gradient_checkpointing and not checkpointed:
            base_model(self.trained_model).gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        self.log(
            {
                "examples_per_pass": self._passes.max_rows or 1,
                "gradient_checkpointing": float(checkpointed or self._passes.gradient_checkpointing),
            }
        )

    def _in_smaller_groups(self, batch: Batch, max_rows: int) -> Batch:
        return collate_in_groups(
            batch["examples"], self._collate, self.max_batch_tokens, max_rows=max_rows, packing=self.packing
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Group,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The group's share of the mean over all supervised tokens of the step: a scalar in nats.

        Raise NonFiniteError.
        """
        total, count = summed_cross_entropy(model, inputs)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if collectives.count() == 1:
            check_finite("loss", loss, self.state.global_step + 1, self.args.learning_rate)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm: torch.Tensor = whole(super()._clip_grad_norm(model))
        scaler = self.accelerator.scaler
        # Under loss scaling, overflowing gradients are expected: the scaler skips the step and lowers the scale.
        if scaler is None or scaler.get_scale() < SMALLEST_SCALE:
            check_finite("gradient norm", norm, self.state.global_step + 1, self.args.learning_rate)
        return norm

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

    def _get_train_sampler(self, train_dataset: Dataset[Example] | None = None) -> SequentialSampler:
        # The stream is already shuffled, and resuming means jumping to an index.
        return SequentialSampler(cast(Sized, train_dataset or self.train_dataset))

    # Evaluation

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Sequence[Example] | None = None, ignore_keys: list[str] | None = None
    ) -> dict[str, float]:
        """Log and return `eval_loss` (nats per supervised token) and the metrics of `more_metrics`.

        Where it fails, a checkpoint is saved before the error is passed on, and resuming evaluates it again.
        """
        started = time.monotonic()
        try:
            metrics = self._measure(self.eval_examples if eval_dataset is None else eval_dataset)
        except Exception:
            target = self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"
            if self.optimizer is not None and not collectives.from_first(target.exists()):
                self._flow.evaluation_due = True
                self._save_checkpoint(self.trained_model)
            raise
        if metrics is None:
            return self._postpone_evaluation()
        metrics["eval_seconds"] = time.monotonic() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.throughput.leave_out(time.monotonic() - started)
        return metrics

    def _measure(self, examples: Sequence[Example]) -> dict[str, float] | None:
        metrics: dict[str, float] = {}
        self.trained_model.eval()
        kept_random = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        whole_model = gathered_weights(self.trained_model, self.sharding)
        as_written = not_compiled(self.trained_model)
        with kept_random, whole_model, torch.no_grad(), self.accelerator.autocast(), as_written:
            if examples:
                metrics["eval_loss"] = mean_loss(
                    self.trained_model,
                    examples,
                    self._collate,
                    batch_size=self.args.per_device_eval_batch_size,
                    max_batch_tokens=self.max_batch_tokens,
                    packing=self.packing,
                )
            if self.more_metrics is not None:
                more = self.more_metrics(self.trained_model, self.state.global_step)
                if more is None:
                    return None
                metrics |= {f"eval_{name}": value for name, value in more.items()}
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass `logs` to the callbacks; with each loss also the tokens so far, and tokens per second since the last."""
        if "loss" in logs:
            logs |= self.throughput.log()
        super().log(logs, start_time)

    def _postpone_evaluation(self) -> dict[str, float]:
        self._flow.evaluation_due = True
        self.control.should_save = True
        self.control.should_training_stop = True
        return {}

    def _determine_best_metric(self, metrics: Mapping[str, float], trial: Any = None) -> bool:
        if self.evaluation_due:
            return False
        score = 0.0 if self.best_metric is None else metrics.get(f"eval_{self.best_metric}", 0.0)
        rank = (score, -metrics.get("eval_loss", 0.0))
        if self._best_rank is not None and rank <= self._best_rank:
            return False
        self._best_rank = rank
        self.state.best_metric = score
        self.state.best_global_step = self.state.global_step
        # The best weights are kept even where no checkpoint is due.
        self.control.should_save = True
        return True

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step = self.state.global_step
        states = gather_states(self.trained_model, cast(torch.optim.Optimizer, self.optimizer), self._save_rng_state)
        if collectives.rank() > 0:
            return
        with _failing_in_words(self.run_folder / f"{checkpoints.PREFIX}{step}"):
            self._write_checkpoint(step, states)
        checkpoints.prune(self.run_folder, self.saving.save_total_limit, self.best_step)

    def _write_checkpoint(self, step: int, states: RankStates) -> None:
        with checkpoints.write_checkpoint(self.run_folder, step, self.saving.origin) as folder:
            save_weights(self.trained_model, folder, states.weights)
            self.saving.tokenizer.save_pretrained(folder)
            checkpoints.write_run_yaml(folder, self.saving.run_config)
            self._write_optimizer(folder, states)
            self._save_scaler(str(folder))
            states.write_random_states(folder)
            self.state.save_to_json(str(folder / STATE_FILE))
            self._loop_state().write(folder)

    def _write_optimizer(self, folder: Path, states: RankStates) -> None:
        if states.optimizer is None:
            self._save_optimizer_and_scheduler(str(folder))
            return
        torch.save(states.optimizer, folder / OPTIMIZER_FILE)
        torch.save(cast(Any, self.lr_scheduler).state_dict(), folder / SCHEDULER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.trained_model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        try:
            load_optimizer(
                cast(torch.optim.Optimizer, self.optimizer),
                cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler),
                Path(checkpoint),
                sharded=self.sharding is not None,
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise checkpoints.CheckpointError(
                f"{checkpoint}: its optimizer state does not fit this run ({error}); resume with the optimizer that "
                "the run was started with"
            ) from error

    def _loop_state(self) -> LoopState:
        return LoopState(
            loss_since_log=self._tr_loss.item(),
            loss_before=self._total_loss_scalar,
            logged_step=self._globalstep_last_logged,
            tokens=self.throughput.tokens,
            best_rank=self._best_rank,
            evaluation_due=self.evaluation_due,
        )

    def _restore_loop_state(self) -> None:
        if self._resumed_from is None:
            self.throughput.begin(0)
            return
        state = LoopState.read(self._resumed_from)
        self.throughput.begin(state.tokens)
        # Trainer has just reset these: it would log the loss since resuming only.
        self._tr_loss = torch.tensor(state.loss_since_log, device=self.args.device)
        self._total_loss_scalar = state.loss_before
        self._globalstep_last_logged = state.logged_step
        self._restore_best_and_evaluate(state)

    def _restore_best_and_evaluate(self, loop_state: LoopState) -> None:
        """Restore the best checkpoint so far, and make up for an evaluation that a stop prevented."""
        self._best_rank = loop_state.best_rank
        if loop_state.evaluation_due:
            self._determine_best_metric(self.evaluate())


@contextlib.contextmanager
def _failing_in_words(checkpoint: Path) -> Iterator[None]:
    """Say what could not be written, where libraries raise errors of their own rather than OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise checkpoints.CheckpointError(
            f"{checkpoint}: can't be written ({str(error).splitlines()[0]}); what was saved before is complete. Free "
            f"some space, then resume with resume={checkpoint.parent}"
        ) from error
