"""arcft's engine, built as evaluate.py builds it, with queue and ledger."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import torch
from transformers import PreTrainedTokenizerBase

from adaptation.prepare import evaluate_config
from adaptation.today import Meter
from adaptation.workload import Figures, Way, Workload
from arcft.problems.arc.config.data import KaggleConfig
from arcft.problems.arc.data.sources import load_kaggle
from arcft.problems.arc.kind import ArcKind
from arcft.runs.adaptation import engine as ttft_engine
from arcft.runs.adaptation.base_model import ask_builder, start_tokenizer
from arcft.runs.setup.ttft_settings import TtftSettings, resolve_ttft
from arcft.text.builder import ExampleBuilder
from arcft.ttft.engine.engine import Engine
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import Adapted, Event, Failed, Lowered, Predicted
from arcft.ttft.workers.run import drain

KIND = ArcKind()


class EngineWay(Way):
    """The base model is loaded once. Every block is a separate run, with a new ledger on disk."""

    def __init__(self, workload: Workload, slots: int | Literal["auto"]) -> None:
        super().__init__(workload)
        config = evaluate_config(workload.overrides)
        assert isinstance(config.data, KaggleConfig)  # as the workload's overrides choose it
        settled = resolve_ttft(config, [])
        self.settled = dataclasses.replace(settled, ttft=dataclasses.replace(settled.ttft, slots=slots))
        self.tasks = {task.id: task for task in load_kaggle(str(config.data.path))}
        self.engine: Engine | None = None

    def load(self) -> None:
        self.num_tokens = ask_builder(self.settled, start_tokenizer(self.settled)).num_tokens
        self._build()
        self._work(self.workload.blocks[0][:1], steps=2, predictions=1)

    def renew(self) -> None:
        """With ttft.slots=auto every block searches for the number of slots again: that is part of its cost."""
        if self.settled.ttft.slots == "auto":
            self._build()

    def answer(self, task_ids: list[str]) -> Figures:
        meter = Meter(self.workload.device)
        events = self._work(task_ids, steps=self.workload.steps, predictions=self.workload.predictions)
        figures = meter.done()
        self._add(meter, events)
        return figures

    def _build(self) -> None:
        self.engine = None
        gc.collect()
        if self.workload.device == "cuda":
            torch.cuda.empty_cache()
        # No adapters are saved, so no folder is needed.
        with patch.object(ttft_engine, "ask_builder", _asks_without_end):
            self.engine = ttft_engine.build_engine(self.settled, Path())

    def _work(self, task_ids: list[str], *, steps: int, predictions: int) -> list[Event]:
        assert self.engine is not None
        config = self.settled.ttft
        events: list[Event] = []
        with tempfile.TemporaryDirectory() as folder, Ledger.create(Path(folder) / "ledger.sqlite", KIND, {}) as ledger:
            units = ttft_engine.make_units(config, [self.tasks[task_id] for task_id in task_ids], self.num_tokens)
            queue = Queue(
                ledger,
                units,
                steps=steps,
                predictions=predictions,
                predict_before=0,
                seed=config.seed,
                attempts=KIND.metrics.attempts,
            )
            drain(self.engine, queue, stopped=lambda: False, on_event=events.append)
        return events

    def _add(self, meter: Meter, events: list[Event]) -> None:
        """Add up the events, and check that exactly the work of the workload was done."""
        figures = meter.figures
        for event in events:
            if isinstance(event, Failed):
                raise RuntimeError(f"task {event.key[1]} failed: {event.reason}")
            if isinstance(event, Lowered):
                figures.notes.append(event.reason)
            if isinstance(event, Adapted):
                work = self.workload.task(event.key[1])
                meter.add_task(list(event.losses), work.examples)
                figures.adapt_seconds += event.seconds
                figures.read_tokens += sum(len(prompt) for prompts in work.prompts for prompt in prompts)
                lengths = sum(len(example["input_ids"]) for example in work.examples)
                assert event.tokens == lengths, f"{event.key[1]}: {event.tokens} tokens, {lengths} elsewhere"
            if isinstance(event, Predicted):
                figures.predict_seconds += event.seconds
                figures.produced_tokens += sum(prediction.num_tokens or 0 for prediction in event.predictions)
        wanted = sum(len(prompts) for task_id in {event.key[1] for event in events}
                     for prompts in self.workload.task(task_id).prompts) * self.workload.new_tokens  # fmt: skip
        assert figures.produced_tokens == wanted, f"{figures.produced_tokens} tokens produced, {wanted} elsewhere"
        meter.take_losses()


def _asks_without_end(settled: TtftSettings, tokenizer: PreTrainedTokenizerBase) -> ExampleBuilder:
    """A prompt builder without end tokens, so that every answer has its full length."""
    builder = ask_builder(settled, tokenizer)
    builder.tokenization.end_ids = []
    return builder
