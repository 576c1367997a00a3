"""What every way has to do, and what it took: plain data, in files that need nothing of arcft to be read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Adapt to each task, and predict its tests: the same for every way."""

    name: str
    note: str
    """What is to be said about the model's weights."""

    folder: str
    """Holds `base/` (model and tokenizer), `start/` (the adapter that every task starts from), `tasks.json` (as Kaggle
    has it) and `tasks/ID.json` (TaskWork)."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    steps: int
    learning_rate: float
    warmup_ratio: float
    predictions: int
    """Prompts a test, decoded together."""

    new_tokens: int
    """Of every answer: as many as the true answers have on average, and no way may stop earlier, for what a model
    writes depends on how its weights were rounded."""

    overrides: list[str]
    """evaluate.py's, for this model and these settings."""

    blocks: list[list[str]]
    """Task ids, measured block by block: each way does a block, then each does the next."""

    fewer: dict[str, int]
    """By way, how many tasks of a block are enough to measure it; they are on average as long as all."""

    base_parameters: int
    adapter_parameters: int
    layers: int
    attention_width: int
    """Heads times their size."""

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
    """`input_ids` and `labels` of each step, labels not shifted, -100 where nothing is learned."""

    prompts: list[list[list[int]]]
    """For each test its prompts."""


@dataclasses.dataclass(kw_only=True)
class Figures:
    """What a way took for some tasks."""

    tasks: int
    seconds: float
    """From having the tasks to having all answers."""

    cpu_seconds: float
    """Processor time; beside other work on the machine it varies less than `seconds`."""

    adapt_seconds: float
    predict_seconds: float
    trained_tokens: int
    attention_terms: int
    """Sum of the squares of the trained examples' lengths."""

    read_tokens: int
    produced_tokens: int
    loss_first: float
    loss_last: float
    """Mean training loss over each task's first and last quarter of steps: that ways learn the same."""

    peak_bytes: int
    """Of the device's memory; on a CPU, of the process."""

    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class NextToken:
    """One way to do it. `load` is done once; `answer` is what is measured, block by block."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def load(self) -> None:
        """Get ready for tasks: load the model, and do a little of everything, as first times are slow."""
        raise NotImplementedError

    def renew(self) -> None:
        """Forget what was measured in earlier blocks, before the next; not measured."""

    def answer(self, task_ids: list[str]) -> Figures:
        """Adapt to and predict each of the tasks."""
        raise NotImplementedError
