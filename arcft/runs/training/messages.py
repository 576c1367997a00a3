"""What a training run prints: its tasks, model and first example, the estimate of a dry run, and what comes next."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft import ranks
from arcft.config.run import TrainConfig
from arcft.console import note, print_with, say, show
from arcft.memory import gib
from arcft.models import folded_attention
from arcft.models.load import resolve_dtype
from arcft.models.lora import trainable_parameters
from arcft.models.quantization import num_parameters
from arcft.models.vocabulary import num_pruned_parameters, pruned_vocabulary
from arcft.protocols import ProblemPool
from arcft.reporting.previews import print_example
from arcft.reporting.words import count
from arcft.runs.common.command import command
from arcft.runs.common.paths import override
from arcft.runs.setup.tasks import TaskSets
from arcft.runs.training.estimate import Memory
from arcft.runs.training.fit import Fit
from arcft.text.stream import ExampleStream, Trial
from arcft.text.tokens import IGNORED, token_texts

SHOWN_IDS = 10
ATTENTION = {
    "sdpa": "sdpa attention",
    "eager": "eager attention",
    folded_attention.NAME: "folded attention",
    "flash_attention_2": "flash attention",
    "flex_attention": "flex attention",
}
"""Names of attn_implementation in words."""


def say_tasks(sets: TaskSets, max_tokens: int | None) -> None:
    """Print how many tasks are trained on, held out and left out; `max_tokens` is the limit on their length."""
    items = [item for _, group in sets.train for item in group]
    pools = sum(isinstance(item, ProblemPool) for item in items)
    words = f"{count(len(items), 'task')} to train on"
    if pools:
        words += f" ({pools} of them pools of many pairs)"
    words += f", {len(sets.held_out)} held out"
    if sets.too_long:
        words += f"; {len(sets.too_long)} left out, longer than {max_tokens} tokens"
    if sets.leaked:
        words += f"; {len(sets.leaked)} left out, because they share content with a held-out task"
    if sets.disjoint_from:
        names = ", ".join(f"{name} ({entry['tasks']} tasks)" for name, entry in sets.disjoint_from.items())
        words += f"; nothing in common with {names}"
    say(words)


def say_skipped(trial: Trial, held_out_skipped: int, max_seq_length: int) -> None:
    """Note which of the tried tasks do not fit, and how many held-out tests have no loss."""
    notes = []
    if trial.too_long:
        ids = ", ".join(trial.too_long[:SHOWN_IDS]) + (", ..." if len(trial.too_long) > SHOWN_IDS else "")
        notes.append(
            f"{len(trial.too_long)} of {count(trial.tried, 'task')} tried do not fit, even with one demonstration; "
            f"others replace them: {ids}"
        )
    if held_out_skipped:
        notes.append(f"left out of eval_loss, too long: {count(held_out_skipped, 'held-out test')}")
    for text in notes:
        note(f"training.max_seq_length={max_seq_length}: {text}")


def show_first_example(stream: ExampleStream, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the first training example, its supervised tokens in colour."""
    example = stream[0]
    texts = token_texts(tokenizer, example.input_ids)
    learned = [label != IGNORED for label in example.labels]
    print_with(lambda console: print_example(console, texts, learned))


def say_model(config: TrainConfig, model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    """Print the model's name and size, and the dtype and attention of its passes."""
    total = f"{num_parameters(model) / 1e6:.2f}"
    vocabulary = pruned_vocabulary(model)
    if vocabulary is not None:
        total += f" of {(num_parameters(model) + num_pruned_parameters(model)) / 1e6:.2f}"
    trained = trainable_parameters(model) / 1e6
    dtype = str(resolve_dtype(config.training.dtype, device)).removeprefix("torch.")
    attention = ATTENTION.get(model.config._attn_implementation, model.config._attn_implementation)
    words = (
        f"model {config.model.name}: {total} M parameters, {trained:.2f} M trained, {dtype} on {device}, {attention}"
    )
    if vocabulary is not None:
        words += f"; {len(vocabulary.kept):,} of {vocabulary.rows:,} tokens kept"
    say(words)


def show_estimate(config: TrainConfig, fit: Fit, model: PreTrainedModel | PeftModel) -> None:
    """Print the memory and the work that a dry run estimates."""
    table = Table(title="dry run: nothing was trained or written", title_justify="left", box=None, show_header=False)
    for name, value in _work(config, model):
        table.add_row(name, value)
    table.add_row("longest example", f"{fit.longest:,} tokens, of {fit.sampled} examples")
    memory = [("memory", "can't be estimated for this model")] if fit.memory is None else _memory(fit.memory)
    for name, value in [*memory, ("available", gib(fit.available.device))]:
        table.add_row(name, value)
    show(table)


def _work(config: TrainConfig, model: PreTrainedModel | PeftModel) -> list[tuple[str, str]]:
    training = config.training
    total = num_parameters(model)
    trained = trainable_parameters(model)
    examples = training.max_steps * training.batch_size * training.gradient_accumulation_steps * ranks.launched()
    return [
        ("parameters", f"{total / 1e6:.2f} M, {trained / 1e6:.2f} M trained ({trained / max(1, total):.1%})"),
        ("steps", f"{training.max_steps:,}"),
        ("examples", f"{examples:,}"),
        ("tokens, at most", f"{examples * training.max_seq_length / 1e6:.1f} M"),
    ]


def _memory(memory: Memory) -> list[tuple[str, str]]:
    """The parts of the training peak, which add up to it, and the peak of loading where that is higher."""
    parts = {
        "libraries": memory.libraries,
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "activations": memory.activations,
        "kept by the C library": memory.kept,
        "loading, in place of these": memory.loading if memory.total > memory.training else 0,
        "CPU memory while loading": memory.host,
    }
    return [*((name, gib(size)) for name, size in parts.items() if size), ("memory, about", gib(memory.total))]


def say_next(folder: Path, kept: str) -> None:
    """Print where the checkpoints are and what to type next."""
    say(f"checkpoints in {folder} ({kept}). Next:")
    say(f"  {command('evaluate')} {override('checkpoint', folder)}", style="bold")
