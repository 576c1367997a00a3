"""The setups of benchmarks/training.py, each trained in a process of its own, since unsloth changes transformers."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughput.inputs import LEARNING_RATE, Rows, train_config

if TYPE_CHECKING:
    import torch

TITLES = {
    "packing": "arcft, packed",
    "unsloth": "unsloth, transformers' Trainer",
    "hf": "transformers' Trainer, PEFT, sdpa",
    "hf_flash": "transformers' Trainer, flash attention",
    "trl": "TRL's SFTTrainer, packed, sdpa",
    "trl_flash": "TRL's SFTTrainer, packed, flash attention",
    "arcft": "arcft",
    "groups": "arcft, grouped by length",
    "compile": "arcft, packed, compiled",
    "arcft_unsloth": "arcft, model.backend=unsloth",
}
"""By name, in the order in which they run on a GPU: those that matter most come first, as time may run out."""

SETUPS = tuple(TITLES)

ARCFT_OVERRIDES = {
    "arcft": [],
    "groups": ["training.max_batch_tokens=8192"],
    "packing": ["training.packing=true"],
    "compile": ["training.packing=true", "training.compile=true"],
    "arcft_unsloth": ["model.backend=unsloth"],
}
"""Overrides of train.py; the other setups are not arcft's."""


def train_setup(
    setup: str, unsloth: Any, arguments: argparse.Namespace, examples: Rows, clock: Any, folder: Path
) -> list[float]:
    """Train `setup` on the examples with `clock` among the callbacks; return the logged losses. `unsloth` is that
    module, where the setup needs it."""
    if setup in ARCFT_OVERRIDES:
        return train_arcft(setup, arguments, examples, clock, folder)
    return train_reference(setup, unsloth, arguments, examples, clock, folder)


def train_arcft(setup: str, arguments: argparse.Namespace, rows: Rows, clock: Any, folder: Path) -> list[float]:
    """Train with arcft's trainer, built as train.py builds it; return the logged losses."""
    from arcft.checkpoints import Origin
    from arcft.models.limits import embedding_rows
    from arcft.models.load import load_tokenizer
    from arcft.runs.setup.build import choose_device
    from arcft.runs.training.model import build_model
    from arcft.text.padding import choose_pad_token
    from arcft.text.tokens import Example
    from arcft.training.arguments import make_training_arguments
    from arcft.training.batches import Grouping
    from arcft.training.saving import Saving
    from arcft.training.trainer import ArcftTrainer

    steps = arguments.warm_up + arguments.steps
    dtype, (name,) = arguments.dtype[0], arguments.model
    config = train_config(ARCFT_OVERRIDES[setup], dtype, steps, name, arguments.base, arguments)
    tokenizer = load_tokenizer(config.model)
    device = choose_device()
    model, fingerprint = build_model(config, device)
    origin = Origin(base_model="", base_fingerprint=fingerprint, data_fingerprint="", seed=0)
    trainer = ArcftTrainer(
        model=model,
        args=make_training_arguments(config.training, folder, device),
        train_dataset=[Example(*row) for row in rows],  # type: ignore[arg-type]
        eval_dataset=None,
        grouping=Grouping(
            pad_id=choose_pad_token(tokenizer, embedding_rows(model)),
            max_batch_tokens=config.training.max_batch_tokens,
            packing=config.training.packing,
        ),
        optimizer_config=config.optimizer,
        scheduler_config=config.scheduler,
        eval_steps=config.training.max_steps,
        saving=Saving(tokenizer=tokenizer, run_config={}, origin=origin, save_total_limit=1),
        compile=config.training.compile,
        callbacks=[clock],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_reference(
    setup: str, unsloth: Any, arguments: argparse.Namespace, examples: Rows, clock: Any, folder: Path
) -> list[float]:
    """Train with transformers' Trainer or TRL's, with their defaults; return the logged losses."""
    import torch

    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": arguments.warm_up + arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "bf16": arguments.dtype[0] == "bfloat16",
        "use_cpu": not on_gpu,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no",
        "logging_steps": arguments.warm_up + arguments.steps,
        "disable_tqdm": True,
        "report_to": [],
    }
    rows = [{"input_ids": ids, "labels": labels} for ids, labels, _ in examples]
    model = _reference_model(setup, unsloth, arguments)
    if setup.startswith("trl"):
        trainer = _sft_trainer(model, settings, rows, clock, arguments)
    else:
        from transformers import Trainer, TrainingArguments

        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings, remove_unused_columns=False),
            train_dataset=rows,
            data_collator=_padded,
            callbacks=[clock],
        )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _sft_trainer(
    model: Any, settings: dict[str, Any], rows: list[Any], clock: Any, arguments: argparse.Namespace
) -> Any:
    """SFTTrainer, each batch as one row. Packing over batches would change what is in an update."""
    from transformers import AutoTokenizer

    trl = importlib.import_module("trl")
    datasets = importlib.import_module("datasets")
    config = trl.SFTConfig(
        **settings,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
    )
    return trl.SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.base),
        callbacks=[clock],
    )


def _reference_model(setup: str, unsloth: Any, arguments: argparse.Namespace) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    dtype = getattr(torch, arguments.dtype[0])
    rank, names = arguments.rank, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if setup == "unsloth":
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(arguments.base), max_seq_length=arguments.length, dtype=dtype, load_in_4bit=False
        )
        return unsloth.FastLanguageModel.get_peft_model(
            model, r=rank, lora_alpha=rank, lora_dropout=0, target_modules=names, use_gradient_checkpointing=False,
            random_state=0,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        arguments.base,
        dtype=dtype,
        attn_implementation="flash_attention_2" if setup.endswith("_flash") else "sdpa",
        device_map="cuda" if on_gpu else "cpu",
    )
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
    return peft.get_peft_model(model, config)


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest example, with an attention mask."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": torch.tensor(mask)}
