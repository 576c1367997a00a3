"""Our training config as transformers' TrainingArguments: all of its hundred switches that matter, in one place."""

from __future__ import annotations

import os
from collections.abc import Sized
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from arcft.config.training import TrainingConfig
from arcft.errors import ArcftError
from arcft.models.load import resolve_dtype
from arcft.text.tokens import Example


class TrainingError(ArcftError):
    """A training run that can't begin."""


def make_training_arguments(config: TrainingConfig, output_dir: Path, device: torch.device) -> TrainingArguments:
    """The arguments of a run on one device. What ArcftTrainer decides itself (optimizer, schedule, evaluation,
    rotation of checkpoints) is left at transformers' defaults. Raises TrainingError."""
    dtype = resolve_dtype(config.dtype, device)
    on_gpu = device.type == "cuda"
    if dtype == torch.float16 and not on_gpu:
        raise TrainingError(
            f"training.dtype={config.dtype}: float16 is trained with loss scaling, which needs a GPU; "
            "on a CPU use training.dtype=float32 or bfloat16"
        )
    # Set by torchrun; TrainingArguments would wait here for the other processes.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TrainingError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: a run is one process on one device; start it without torchrun, "
            "and use a multirun (-m) to fill several GPUs"
        )
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=config.seed,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        # The reentrant kind loses the gradient where, under an adapter, no input requires one.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=on_gpu,
        # Would look for a dictionary's keys in our examples.
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=config.logging_steps,
        # Would report the mean of the earlier losses in place of a loss that is not a number.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_steps,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # More GPUs than one would be used by DataParallel, which is slow and splits batches behind our back.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_length(train_dataset: Dataset[Example], arguments: TrainingArguments) -> None:
    """Raise TrainingError where the run would take more examples than there are."""
    length = len(cast(Sized, train_dataset))
    needed = arguments.max_steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    if length < needed:
        raise TrainingError(f"the stream has {length} examples, the run takes {needed}")
