"""What transformers, TRL, PEFT and others call the keys of arcft, for hints about keys that don't exist."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_EPOCHS = ("training.max_steps (optimizer steps; a run has no epochs)",)
_FOUR_BITS = ("model.quantization=nf4",)
_FLASH = ("model.attn_implementation=flash_attention_2",)
_RESUME = ("resume=RUN",)
_BATCH = ("training.per_device_train_batch_size", "inference.batch_size")
_SEED = ("training.seed", "inference.seed")
_LENGTH = ("training.max_seq_length", "inference.max_seq_length")

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "adam_beta1": ("optimizer.beta1",),
    "adam_beta2": ("optimizer.beta2",),
    "adam_epsilon": ("optimizer.eps",),
    "attention": ("model.attn_implementation",),
    "batch_size": _BATCH,
    "base_model_name_or_path": ("model.path",),
    "bf16": ("training.dtype=bfloat16", "inference.dtype=bfloat16"),
    "checkpoint_path": ("checkpoint",),
    "ckpt": ("checkpoint",),
    "completion_only_loss": ("training.loss_on=completion",),
    "cutoff_len": _LENGTH,
    "dataset": ("data=NAME",),
    "dataset_name": ("data=NAME",),
    "do_sample": ("inference=sample",),
    "epochs": _EPOCHS,
    "flash_attention": _FLASH,
    "flash_attn": _FLASH,
    "fp16": ("training.dtype=float16", "inference.dtype=float16"),
    "grad_accum": ("training.gradient_accumulation_steps",),
    "gradient_clipping": ("training.max_grad_norm",),
    "learning_rate": ("training.learning_rate",),
    "load_in_4bit": _FOUR_BITS,
    "load_in_8bit": ("model.quantization=int8",),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "lora_r": ("lora.r",),
    "lora_rank": ("lora.r",),
    "lr": ("training.learning_rate",),
    "lr_scheduler_type": ("scheduler=NAME",),
    "max_completion_length": ("inference.max_new_tokens",),
    "max_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "model_name": ("model.path",),
    "model_name_or_path": ("model.path",),
    "modules_to_save": ("model.train_modules",),
    "n_samples": ("inference.predictions_per_test",),
    "num_epochs": _EPOCHS,
    "num_return_sequences": ("inference.predictions_per_test",),
    "num_train_epochs": _EPOCHS,
    "optim": ("optimizer=NAME",),
    "output_dir": ("hydra.run.dir=FOLDER",),
    "per_device_eval_batch_size": ("inference.batch_size",),
    "project": ("tracking.project",),
    "r": ("lora.r",),
    "rank": ("lora.r",),
    "report_to": ("tracking=NAME",),
    "resume_from_checkpoint": _RESUME,
    "seed": _SEED,
    "train_batch_size": _BATCH[:1],
    "torch_dtype": ("training.dtype", "inference.dtype"),
    "use_4bit": _FOUR_BITS,
    "use_flash_attention_2": _FLASH,
    "warmup_ratio": ("scheduler.warmup_ratio",),
    "warmup_steps": ("scheduler.warmup_ratio (a share of the steps)",),
}
"""By the last part of a key: the keys, with a value or a remark where one is needed."""

OPTIONS: Mapping[tuple[str, str], str] = {
    ("lora", "qlora"): "lora=default model.quantization=nf4",
    ("scheduler", "cosine_annealing"): "scheduler=cosine",
    ("optimizer", "adamw_torch"): "optimizer=adamw",
}
"""By group and option: what to choose."""


def synonyms(key: str, known: Collection[str]) -> list[str]:
    """What `key` is called in arcft, as far as `known`, the dotted keys of a command, has it: in its own group if it is
    there, else in any."""
    group, _, last = key.rpartition(".")
    found = [words for words in SYNONYMS.get(last, ()) if _is_known(words, known)]
    return [words for words in found if words.startswith(f"{group}.")] or found


def _is_known(words: str, known: Collection[str]) -> bool:
    key = words.partition("=")[0].partition(" (")[0]
    return key in known or key.startswith("hydra.")
