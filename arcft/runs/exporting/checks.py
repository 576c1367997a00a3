"""Prompts of a run, and whether two models give the same logits on them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.console import note
from arcft.errors import ArcftError
from arcft.protocols import Positions
from arcft.runs.setup.checkpoint_config import TrainedRun
from arcft.runs.setup.tasks import tasks_named
from arcft.text.builder import ExampleBuilder

TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3, "q8_0": 0.5}
"""By dtype of the written weights, the largest difference of a logit, in standard deviations of the logits."""

_NUM_PROMPTS = 4
_MAX_TOKENS = 1024
_TASKS_READ = 16


class ExportError(ArcftError):
    """What was written does not compute what was trained, or could not be read back."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Token ids, and the rule of their positions."""

    token_ids: list[list[int]]
    positions: Positions | None
    prompts_from: str
    """Where the ids are from, in words."""

    @torch.no_grad()
    def logits(self, model: PreTrainedModel | PeftModel) -> torch.Tensor:
        """Logits of all tokens, float32 [tokens, vocabulary]."""
        rows = []
        for ids in self.token_ids:
            inputs = torch.tensor([ids])
            options = {} if self.positions is None else {"position_ids": torch.tensor([self.positions(ids)])}
            outputs = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False, **options)
            rows.append(outputs.logits[0].float())
        return torch.cat(rows)


def probe_of(run: TrainedRun, builder: ExampleBuilder, rows: int) -> Probe:
    """Examples of tasks that the run held out, was adapted to or trained on: the shortest of a few. Where its data is
    gone, random tokens, of the `rows` that the model's embedding has."""
    positions = builder.tokenization.positions
    ids: Sequence[str] = next(
        (run.tasks[name] for name in ("held_out", "adapted_to", "train") if run.tasks.get(name)), []
    )
    try:
        tasks = tasks_named(run, ids[:_TASKS_READ])
        examples = [_token_ids(builder, task) for task in tasks]
        fitting = sorted((ids for ids in examples if ids), key=len)[:_NUM_PROMPTS]
        if fitting:
            return Probe(fitting, positions, f"{len(fitting)} tasks of the run's data")
        reason = "none fits the context"
    except (ArcftError, OSError) as error:
        reason = str(error)
    note(f"the run's tasks can't be used ({reason}); the export is checked on random tokens instead")
    generator = np.random.default_rng(0)
    number = min(rows, len(builder.tokenization.tokenizer))
    drawn = [generator.integers(number, size=64).tolist() for _ in range(_NUM_PROMPTS)]
    return Probe(drawn, positions, f"{_NUM_PROMPTS} rows of random tokens")


def _token_ids(builder: ExampleBuilder, task: object) -> list[int]:
    question = builder.format.question(task, 0)  # type: ignore[arg-type]
    known = task.answers[0] is not None  # type: ignore[attr-defined]
    example = builder.example(question) if known else None
    fitted = builder.fit(question, None)
    ids = example.input_ids if example is not None else builder.prompt(fitted) if fitted is not None else []
    return ids[:_MAX_TOKENS]


def difference(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, in standard deviations of the reference."""
    if logits.shape != reference.shape:
        return float("inf")
    return float((logits - reference).abs().max() / reference.std())


def check(logits: torch.Tensor, reference: torch.Tensor, what: str, dtype: str) -> float:
    """The difference of the two. Raise ExportError if it is above the tolerance of `dtype`."""
    found = difference(logits, reference)
    if not found <= TOLERANCES[dtype]:
        raise ExportError(
            f"{what} does not compute what was trained: a logit differs by {found:.2g} standard deviations; rounding "
            f"to {dtype} accounts for at most {TOLERANCES[dtype]:g}; nothing was written"
        )
    return found


def check_weights(found: Mapping[str, torch.Tensor], expected: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Raise ExportError unless weights that were read back are those that were written, to the bit. Those that are
    `expected` may be made one by one, so that they need no memory for a copy of the model."""
    missing = set(found)
    for name, weight in expected:
        if name not in found or not torch.equal(found[name], weight):
            raise _not_as_written(what, name)
        missing.remove(name)
    for name in sorted(missing):
        raise _not_as_written(what, name)


def _not_as_written(what: str, name: str) -> ExportError:
    return ExportError(f"{what}: the weight {name} is not read back as it was written; nothing was written")


def texts_of(probe: Probe, builder: ExampleBuilder) -> list[str]:
    """The probe as text, for a comparison of tokenizers."""
    tokenizer = builder.tokenization.tokenizer
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    for ids in probe.token_ids:
        plain = itertools.dropwhile(special.__contains__, ids)
        texts.append(str(tokenizer.decode(list(plain))))
    return texts
