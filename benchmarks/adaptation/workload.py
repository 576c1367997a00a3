"""The work that every compared setup has to do, and its measurements: plain data, readable without arcft."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Adapt to each task and predict its tests: the same work for every setup."""

    name: str
    note: str
    """A remark on the model's weights."""

    folder: str
    """Holds `base/` (model and tokenizer), `start/` (the adapter that every task starts from), `tasks.json` (Kaggle's
    format) and `tasks/ID.json` (TaskWork)."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    steps: int
    learning_rate: float
    warmup_ratio: float
    predictions: int
    """Prompts per test, decoded together."""

    new_tokens: int
    """Length of every answer: the mean of the true answers. No setup may stop earlier, because what a model writes
    depends on rounding."""

    overrides: list[str]
    """evaluate.py's overrides for this model and these settings."""

    blocks: list[list[str]]
    """Task ids by block: every setup does the first block, then every setup does the next."""

    fewer: dict[str, int]
    """By setup, how many tasks of a block suffice to measure it; their mean length is that of the whole block."""

    base_parameters: int
    adapter_parameters: int
    layers: int
    attention_width: int
    """Number of heads times their size."""

    max_seq_length: int

    @property
    def base(self) -> Path:
        return Path(self.folder) / "base"

    @property
    def start(self) -> Path:
        return Path(self.folder) / "start"

    def task(self, task_id: str) -> TaskWork:
        path = Path(self.folder) / "tasks" / f"{task_id}.json"
        return TaskWork(**json.loads(path.read_text(encoding="utf-8")))

    def save(self) -> Path:
        path = Path(self.folder) / "workload.json"
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        return path


def load_workload(path: Path) -> Workload:
    return Workload(**json.loads(path.read_text(encoding="utf-8")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskWork:
    """A task as token ids."""

    examples: list[dict[str, list[int]]]
    """`input_ids` and `labels` of each step; labels are not shifted, and -100 where there is no loss."""

    prompts: list[list[list[int]]]
    """For each test, its prompts as token ids."""


@dataclasses.dataclass(kw_only=True)
class Figures:
    """Measurements of one setup over some tasks."""

    tasks: int
    seconds: float
    """Wall time from receiving the tasks to having all answers."""

    cpu_seconds: float
    """CPU time; under other load on the machine it varies less than `seconds`."""

    adapt_seconds: float
    predict_seconds: float
    trained_tokens: int
    attention_terms: int
    """Sum of the squared lengths of the training examples, in tokens."""

    read_tokens: int
    produced_tokens: int
    loss_first: float
    loss_last: float
    """Mean training loss over the last quarter of each task's steps (`loss_first`: the first); equal across setups that
    do the same work."""

    peak_bytes: int
    """Peak device memory; on a CPU, of the process."""

    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Way:
    """One of the compared setups. `load` runs once; `answer` is measured, block by block."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def load(self) -> None:
        """Load the model and warm up by doing a little of everything."""
        raise NotImplementedError

    def renew(self) -> None:
        """Reset what earlier blocks taught the setup, before the next block; not measured."""

    def answer(self, task_ids: list[str]) -> Figures:
        """Adapt to and predict each of the tasks."""
        raise NotImplementedError
