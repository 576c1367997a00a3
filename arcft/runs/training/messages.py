"""What train.py says before it trains: tasks, model, the first example, and in a dry run what it would take."""

from __future__ import annotations

import torch
from peft import PeftModel
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft.config.run import TrainConfig
from arcft.console import note, print_with, say, show
from arcft.models.load import resolve_dtype
from arcft.models.lora import trainable_parameters
from arcft.protocols import ProblemPool
from arcft.reporting.previews import print_example
from arcft.reporting.words import count
from arcft.runs.setup.tasks import TaskSets
from arcft.runs.training.estimate import estimate
from arcft.text.stream import ExampleStream, Trial
from arcft.text.tokens import IGNORED, token_texts

SHOWN_IDS = 10


def say_tasks(sets: TaskSets, max_tokens: int | None) -> None:
    """How many tasks are trained on, held out, and left out; `max_tokens` is how long they may be."""
    items = [item for _, group in sets.train for item in group]
    pools = sum(isinstance(item, ProblemPool) for item in items)
    words = f"{count(len(items), 'task')} to train on"
    if pools:
        words += f" ({pools} of them pools of many pairs)"
    words += f", {len(sets.held_out)} held out"
    if sets.too_long:
        words += f"; {len(sets.too_long)} left out, longer than {max_tokens} tokens"
    if sets.leaked:
        words += f"; {len(sets.leaked)} left out, for they would give a held-out task away"
    if sets.disjoint_from:
        names = ", ".join(f"{name} ({entry['tasks']} tasks)" for name, entry in sets.disjoint_from.items())
        words += f"; nothing in common with {names}"
    say(words)


def say_skipped(trial: Trial, held_out_skipped: int, max_seq_length: int) -> None:
    """Which tasks fit only where an augmentation shortens them, and how many held-out tests give no loss."""
    notes = []
    if trial.too_long:
        ids = ", ".join(trial.too_long[:SHOWN_IDS]) + (", ..." if len(trial.too_long) > SHOWN_IDS else "")
        notes.append(
            f"{len(trial.too_long)} of {count(trial.tried, 'task')} tried do not fit, even with one demonstration; "
            f"others are learned in their place: {ids}"
        )
    if held_out_skipped:
        notes.append(f"left out of eval_loss, too long: {count(held_out_skipped, 'held-out test')}")
    for text in notes:
        note(f"training.max_seq_length={max_seq_length}: {text}")


def show_first_example(stream: ExampleStream, tokenizer: PreTrainedTokenizerBase) -> None:
    """The first training example, its learned tokens in colour."""
    example = stream[0]
    texts = token_texts(tokenizer, example.input_ids)
    learned = [label != IGNORED for label in example.labels]
    print_with(lambda console: print_example(console, texts, learned))


def say_model(config: TrainConfig, model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    """Name, size, and the arithmetic of its passes."""
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    trained = trainable_parameters(model) / 1e6
    dtype = str(resolve_dtype(config.training.dtype, device)).removeprefix("torch.")
    say(f"model {config.model.name}: {total:.2f} M parameters, {trained:.2f} M trained, {dtype} on {device}")


def show_estimate(config: TrainConfig, model: PreTrainedModel | PeftModel) -> None:
    """Memory and steps, as the closing of a dry run."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    shape = base.config.get_text_config()
    table = Table(title="dry run: nothing was trained or written", title_justify="left", box=None, show_header=False)
    for name, value in estimate(model, config, shape.hidden_size, shape.num_hidden_layers).rows():
        table.add_row(name, value)
    show(table)
