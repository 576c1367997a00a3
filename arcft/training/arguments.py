"""Our training config as transformers' TrainingArguments: the few of its hundred settings that matter, in one place."""

from __future__ import annotations

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
from arcft.training.compiling import check_compiler

MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""accelerate's names of dtypes."""


class TrainingError(ArcftError):
    """A training run that can't start."""


def make_training_arguments(config: TrainingConfig, output_dir: Path, device: torch.device) -> TrainingArguments:
    """The arguments of a run on one device, or of this rank of a run on several.

    `config` has no `auto` left for batch size or gradient checkpointing. What ArcftTrainer decides itself (optimizer,
    schedule, evaluation, rotation of checkpoints) is left at transformers' defaults. Raise TrainingError for float16
    without a GPU.
    """
    dtype = resolve_dtype(config.dtype, device)
    on_gpu = device.type == "cuda"
    if dtype == torch.float16 and not on_gpu:
        raise TrainingError(
            f"training.dtype={config.dtype}: float16 needs loss scaling, which needs a GPU; "
            "on a CPU use training.dtype=float32 or bfloat16"
        )
    if config.compile:
        check_compiler(device)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=config.seed,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing is True,
        # Reentrant checkpointing loses the gradient when no input requires one, as under an adapter.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=on_gpu,
        # It would look for dictionary keys, and our examples are objects.
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=config.logging_steps,
        # It would replace a NaN by the mean of the earlier losses.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_steps,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # `accelerate launch` presets it in the environment.
    arguments.mixed_precision = MIXED_PRECISION[dtype]
    # With several GPUs, Trainer would use DataParallel, which is slow and splits batches behind our back.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_length(train_dataset: Dataset[Example], arguments: TrainingArguments) -> None:
    """Raise TrainingError if the run needs more examples than the dataset has."""
    length = len(cast(Sized, train_dataset))
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    needed = arguments.max_steps * batch
    if length < needed:
        raise TrainingError(f"the stream has {length} examples, the run needs {needed}")
