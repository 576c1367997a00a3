"""Time to make a training example, compared with the training step that uses it.

    python benchmarks/data_pipeline.py --quick
    python benchmarks/data_pipeline.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

Measures the stream that train.py reads (draw a task, augment, encode, tokenise) and a real step of forward, backward
and optimizer, for the tiny model and for SmolLM2-135M. Everything runs in one process, so the printed share is the time
that training with training.num_workers=0 waits for data. The goal is below 5%.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import LlamaConfig

from arcft.config.run import TrainConfig
from arcft.models.limits import embedding_rows
from arcft.problems.arc.task import Task
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.build import choose_device
from arcft.runs.setup.kinds import read_config
from arcft.runs.training.model import build_model
from arcft.runs.training.preparation import Prepared, prepare
from arcft.text.padding import choose_pad_token
from arcft.training.batches import collate
from arcft.training.loss import summed_cross_entropy
from arcft.training.optimizers import build_optimizer

GOAL = 0.05
WARM_UP = 5  # uncounted examples (and one step): caches fill, and memory is first touched
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples and steps, shorter sequences for SmolLM2")
    parser.add_argument("--smollm2", metavar="PATH", help="GGUF file or folder of SmolLM2-135M; else random weights")
    arguments = parser.parse_args()
    if arguments.smollm2 is not None and not Path(arguments.smollm2).exists():
        parser.error(f"--smollm2 {arguments.smollm2}: no such file or folder")
    num_examples, num_steps = (100, 2) if arguments.quick else (1000, 4)
    device = choose_device()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            ("tiny", ["model=tiny"], "random weights"),
            ("smollm2_135m", *smollm2_overrides(arguments.smollm2, arguments.quick, Path(folder))),
        ]
        rows: list[dict[str, Any]] = []
        for name, overrides, note in runs:
            config = make_config(overrides)
            row: dict[str, Any] = {"model": name, "note": note, "max_seq_length": config.training.max_seq_length}
            prepared = prepare(config)
            row |= measure_data(prepared, num_examples)
            row |= measure_steps(config, prepared, device, num_steps)
            row["examples_per_step"] = config.training.batch_size
            data_seconds = row["data_ms_per_example"] / 1000 * row["examples_per_step"]
            row["data_share_of_step"] = data_seconds / (data_seconds + row["step_seconds"])
            rows.append(row)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print_table(rows, f"{machine}, {torch.get_num_threads()} threads")
    result = {
        "benchmark": "data_pipeline",
        "quick": arguments.quick,
        "device": device.type,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "goal_share": GOAL,
        "goal_met": all(row["data_share_of_step"] < GOAL for row in rows),
        "models": rows,
    }
    print(json.dumps(result))


def smollm2_overrides(path: str | None, quick: bool, folder: Path) -> tuple[list[str], str]:
    """What to compose for SmolLM2-135M, and what is to be said about it."""
    # One example a step: eight of four thousand tokens would take minutes on a CPU, for the same share.
    overrides = ["model=smollm2_135m", "training.per_device_train_batch_size=1"]
    if quick:
        overrides.append("training.max_seq_length=1024")
    if path is not None:
        return [*overrides, f"model.path='{Path(path).resolve()}'"], f"weights of {Path(path).name}"
    SMOLLM2.save_pretrained(folder)
    overrides += [f"model.path='{folder}'", "model.init=random", "model.tokenizer=bundled:tiny"]
    return overrides, "random weights, the tiny model's tokenizer"


def make_config(overrides: Sequence[str]) -> TrainConfig:
    """train.py's own config, without tracking."""
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        composed: Any = OmegaConf.to_container(
            compose("train", ["tracking=none", "training.max_steps=100000", *overrides]), resolve=True
        )
    return read_config(TrainConfig, composed)


def measure_data(prepared: Prepared, count: int) -> dict[str, float]:
    """Milliseconds per example: for the whole stream, and for its parts on the same tasks."""
    stream = prepared.stream
    for k in range(WARM_UP):
        stream[k]
    start = time.perf_counter()
    tokens = sum(len(stream[k].input_ids) for k in range(WARM_UP, WARM_UP + count))
    seconds = time.perf_counter() - start
    parts = dict.fromkeys(("augment", "encode", "tokenise"), 0.0)
    for k in range(WARM_UP, WARM_UP + count):
        task = stream.sampler.item(k)
        assert isinstance(task, Task)
        times = [time.perf_counter()]
        question = stream.questions.draw(task, np.random.default_rng(k))
        times.append(time.perf_counter())
        text = prepared.builder.format.render(question)
        times.append(time.perf_counter())
        prepared.builder.tokenization.example(text.system, text.user, text.opener, text.completion, text.output_spans)
        times.append(time.perf_counter())
        for part, duration in zip(parts, np.diff(times), strict=True):
            parts[part] += float(duration)
    return {
        "examples": count,
        "examples_per_second": count / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_example": tokens / count,
        "data_ms_per_example": 1000 * seconds / count,
        # Measured separately, with other random draws, so they add up to the whole only approximately.
        **{f"{part}_ms_per_example": 1000 * duration / count for part, duration in parts.items()},
    }


def measure_steps(config: TrainConfig, prepared: Prepared, device: torch.device, count: int) -> dict[str, float | str]:
    """Seconds per optimizer step as the trainer does it: logits and loss at supervised tokens only."""
    model, _ = build_model(config, device)
    model.train()
    optimizer = build_optimizer(model, config.optimizer, config.training.learning_rate)
    pad_id = choose_pad_token(prepared.tokenizer, embedding_rows(model))
    dtype = model.dtype
    arithmetic: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if dtype != torch.float32:
        arithmetic = torch.autocast(device.type, dtype=dtype)
    size = config.training.batch_size
    seconds = 0.0
    for step in range(count + 1):
        examples = [prepared.stream[step * size + row] for row in range(size)]
        start = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in collate(examples, pad_id).items()}
        with arithmetic:
            loss, tokens = summed_cross_entropy(model, batch)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        # .item() waits for the device.
        assert np.isfinite(loss.item())
        if step:
            seconds += time.perf_counter() - start
    return {"steps": count, "step_seconds": seconds / count, "dtype": str(dtype).removeprefix("torch.")}


def print_table(rows: Sequence[dict[str, Any]], machine: str) -> None:
    lines = {
        "longest sequence, tokens": ("max_seq_length", "{}"),
        "mean example, tokens": ("tokens_per_example", "{:.0f}"),
        "examples per second": ("examples_per_second", "{:.0f}"),
        "ms per example": ("data_ms_per_example", "{:.2f}"),
        "  augment": ("augment_ms_per_example", "{:.2f}"),
        "  encode": ("encode_ms_per_example", "{:.2f}"),
        "  tokenise": ("tokenise_ms_per_example", "{:.2f}"),
        "examples per step": ("examples_per_step", "{}"),
        "training step, s": ("step_seconds", "{:.3f}"),
        "data's share of the step": ("data_share_of_step", "{:.2%}"),
    }
    print(f"\n{machine}; goal: a share below {GOAL:.0%}\n")
    print(f"{'':26}" + "".join(f"{row['model']:>16}" for row in rows))
    for title, (key, form) in lines.items():
        print(f"{title:26}" + "".join(f"{form.format(row[key]):>16}" for row in rows))
    for row in rows:
        print(f"{row['model']}: {row['note']}, {row['dtype']}")
    print()


if __name__ == "__main__":
    main()
