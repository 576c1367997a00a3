"""What all setups of benchmarks/training.py read: the base model, and the examples of all steps as token ids."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-4
SMOLLM2 = "smollm2_135m"
EXAMPLES = "examples.json"

Rows = list[tuple[list[int], list[int], int]]
"""Token ids, labels and length of the prompt of each example."""


def save_base(name: str, dtype: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Write the model into the empty `folder`, in the form that every setup reads."""
    import torch
    from adaptation.prepare import ARCHITECTURES, drawn_on_gpu

    from arcft.config.model import ModelConfig
    from arcft.models.load import load_model, load_tokenizer

    if name == "tiny":
        config = ModelConfig(name=name, path="bundled:tiny")
    elif name == SMOLLM2:
        config = ModelConfig(name=name, path=str(arguments.smollm2))
    else:
        config = ModelConfig(name=name, path=str(ARCHITECTURES / name), init="random", tokenizer=arguments.tokenizer)
    if config.init == "random" and torch.cuda.is_available():
        model = drawn_on_gpu(ARCHITECTURES / name, getattr(torch, dtype))
    else:
        model = load_model(config, dtype=getattr(torch, dtype), device=torch.device("cpu"))
    # Weights read from a GGUF file are no longer quantised.
    if "quantization_config" in model.config.to_dict():
        del model.config.quantization_config
    model.save_pretrained(folder)
    load_tokenizer(config).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def write_examples(name: str, base: Path, arguments: argparse.Namespace) -> None:
    """Write the examples of all steps into the folder of the base model."""
    from arcft.runs.training.preparation import prepare

    steps = arguments.warm_up + arguments.steps
    prepared = prepare(train_config([], "float32", steps, name, base, arguments))
    examples = [prepared.stream[number] for number in range(steps * arguments.batch)]
    rows = [[example.input_ids, example.labels, example.prompt_length] for example in examples]
    (base / EXAMPLES).write_text(json.dumps(rows), encoding="utf-8")


def read_examples(base: Path) -> Rows:
    return json.loads((base / EXAMPLES).read_text(encoding="utf-8"))


def train_config(
    overrides: Sequence[str], dtype: str, steps: int, name: str, base: Path, arguments: argparse.Namespace
) -> Any:
    """train.py's config with the benchmark's model, examples and adapter, and with `overrides`."""
    from data_pipeline import make_config

    model = [f"model={'local' if name == 'tiny' else name}", f"model.path='{base}'"]
    return make_config(
        [
            *model,
            "prompt=grid_only",
            "encoder=minimal",
            "showcase=none",
            "scheduler=constant",
            "scheduler.warmup_ratio=0.0",
            "data.held_out=0",
            f"model.recommended.training.max_seq_length={arguments.length}",
            f"lora.r={arguments.rank}",
            f"lora.alpha={arguments.rank}",
            f"training.learning_rate={LEARNING_RATE}",
            f"training.max_steps={steps}",
            f"training.per_device_train_batch_size={arguments.batch}",
            f"training.save_steps={10 * steps}",
            f"training.logging_steps={steps}",
            "training.generation_tasks=0",
            f"training.dtype={dtype}",
            *overrides,
        ]
    )
