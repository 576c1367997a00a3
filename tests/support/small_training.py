"""A model of a few thousand weights, a stream of examples and a trainer over them, for the tests of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from arcft.checkpoints import Origin
from arcft.config.lora import LoraConfig
from arcft.config.optimizer import OptimizerConfig
from arcft.config.scheduler.cosine import CosineConfig
from arcft.config.schema import options
from arcft.config.training import TrainingConfig
from arcft.models.lora import apply_lora
from arcft.text.tokens import IGNORED, Example
from arcft.training.arguments import make_training_arguments
from arcft.training.batches import Grouping
from arcft.training.saving import Saving
from arcft.training.trainer import ArcftTrainer

VOCABULARY = 32
PAD = 0
TRAIN_MODULES = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
CPU = torch.device("cpu")


def small_config(**changes: Any) -> Qwen2Config:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return Qwen2Config(**(settings | changes))


def small_model(seed: int = 0, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(small_config(**changes)).eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "<end>": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="<pad>", eos_token="<end>"
    )


def lora_config(**changes: Any) -> LoraConfig:
    settings = {
        "r": 4,
        "alpha": 8.0,
        "dropout": 0.1,
        "target_modules": "all-linear",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    return LoraConfig(**(settings | changes))


def adapted_model(seed: int = 0, **changes: Any) -> peft.PeftModel:
    return apply_lora(small_model(), lora_config(**changes), TRAIN_MODULES, seed=seed)


def optimizer_config(name: str = "adamw", **changes: Any) -> OptimizerConfig:
    settings = {"name": name, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    if name == "muon":
        settings["momentum"] = 0.9
    return options(OptimizerConfig)[name](**(settings | changes))


def training_config(**changes: Any) -> TrainingConfig:
    settings = {
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_seq_length": 64,
        "drop_demonstrations": False,
        "loss_on": "completion",
        "dtype": "float32",
        "seed": 0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "save_steps": 1000,
        "eval_steps": 1000,
        "save_total_limit": 2,
        "logging_steps": 1,
        "best_metric": "accuracy",
        "generation_tasks": 0,
    }
    return TrainingConfig(**(settings | changes))


class CopyStream(Dataset):
    """Item k: random tokens, then the same tokens again, which are to be learned. A pure function of k."""

    def __init__(self, length: int = 10_000) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> Example:
        generator = np.random.default_rng([7, k])
        half = generator.integers(2, VOCABULARY, size=int(generator.integers(3, 12))).tolist()
        ids = [*half, *half, 1]
        return Example(ids, [IGNORED] * len(half) + ids[len(half) :], len(half))


EVALUATION = [CopyStream()[k] for k in range(9_000, 9_010)]


class LogRecorder(TrainerCallback):
    """Keeps every training log."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({"step": state.global_step, **logs})

    def of(self, name: str) -> list[float]:
        return [log[name] for log in self.logs if name in log]


@dataclasses.dataclass
class Run:
    trainer: ArcftTrainer
    logs: LogRecorder


def small_run(folder: Path, model: Any = None, device: torch.device = CPU, **changes: Any) -> Run:
    """A trainer on an adapted small model. `changes` are those of the training config, or of the trainer itself."""
    logs = LogRecorder()
    of_trainer = {"eval_dataset", "more_metrics", "best_metric", "callbacks", "stop", "optimizer_config", "positions"}
    of_trainer.add("sharding")
    options = {name: changes.pop(name) for name in of_trainer & changes.keys()}
    config = training_config(**changes)
    trainer = ArcftTrainer(
        model=adapted_model() if model is None else model,
        args=make_training_arguments(config, folder, device),
        train_dataset=CopyStream(),
        grouping=Grouping(
            pad_id=PAD,
            positions=options.pop("positions", None),
            max_batch_tokens=config.max_batch_tokens,
            packing=config.packing,
        ),
        scheduler_config=CosineConfig(warmup_ratio=0.2, min_lr_ratio=0.1),
        eval_steps=config.eval_steps,
        compile=config.compile,
        saving=Saving(
            tokenizer=small_tokenizer(),
            run_config={"training": dataclasses.asdict(config)},
            origin=Origin(base_model="small", base_fingerprint="f0", data_fingerprint="d0", seed=config.seed),
            save_total_limit=config.save_total_limit,
        ),
        **{
            "eval_dataset": None,
            "optimizer_config": optimizer_config(),
            **options,
            "callbacks": [logs, *options.get("callbacks", ())],
        },
    )
    return Run(trainer, logs)
