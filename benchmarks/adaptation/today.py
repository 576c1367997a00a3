"""The reference setups, without arcft: transformers' Trainer, PEFT, `generate`."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import time
from typing import Any

import peft
import torch
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from adaptation.workload import Figures, TaskWork, Way, Workload


def load_base(workload: Workload) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        workload.base, dtype=getattr(torch, workload.dtype), attn_implementation="sdpa", device_map=workload.device
    )
    # Every answer has the workload's length.
    model.generation_config.eos_token_id = None
    return model


def put_adapter(model: Any, workload: Workload) -> Any:
    """The base model with the start adapter, trainable. PEFT keeps the adapter of a bfloat16 model in float32."""
    return peft.PeftModel.from_pretrained(model, str(workload.start), is_trainable=True)


def read_adapter(workload: Workload) -> dict[str, torch.Tensor]:
    """The start adapter's weights on the device, for resetting the adapter without reading the file again."""
    return load_file(workload.start / "adapter_model.safetensors", device=workload.device)


def train_with_trainer(model: Any, work: TaskWork, workload: Workload) -> list[float]:
    """Train the adapter on a task's examples in order; returns the mean loss of each quarter of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(work.examples),
            per_device_train_batch_size=1,
            learning_rate=workload.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(workload.warmup_ratio * len(work.examples)),
            max_grad_norm=1.0,
            weight_decay=0.0,
            bf16=workload.dtype == "bfloat16",
            use_cpu=workload.device == "cpu",
            train_sampling_strategy="sequential",
            dataloader_pin_memory=workload.device == "cuda",
            save_strategy="no",
            # Each log synchronises the device, so log rarely.
            logging_steps=max(1, len(work.examples) // 4),
            disable_tqdm=True,
            report_to=[],
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=work.examples,
            data_collator=_as_batch,
        )
        # Discard its output; producing it is part of this setup's cost.
        with contextlib.redirect_stdout(None):
            trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.inference_mode()
def generate(model: Any, work: TaskWork, workload: Workload) -> tuple[int, int]:
    """Predict every test, its prompts in one batch; returns the numbers of tokens read and produced."""
    model.eval()
    read = produced = 0
    for prompts in work.prompts:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = model.generate(
            input_ids=ids.to(workload.device),
            attention_mask=mask.to(workload.device),
            max_new_tokens=workload.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert output.shape[1] == width + workload.new_tokens, "an answer ended early"
        output.cpu()
        read += sum(len(prompt) for prompt in prompts)
        produced += workload.new_tokens * len(prompts)
    model.train()
    return read, produced


class Meter:
    """Accumulates the measurements of tasks."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.figures = Figures(
            tasks=0,
            seconds=0.0,
            cpu_seconds=0.0,
            adapt_seconds=0.0,
            predict_seconds=0.0,
            trained_tokens=0,
            attention_terms=0,
            read_tokens=0,
            produced_tokens=0,
            loss_first=0.0,
            loss_last=0.0,
            peak_bytes=0,
            notes=[],
        )
        self._losses: list[list[float]] = []
        self._begun = time.perf_counter()
        self._cpu = time.process_time()

    def now(self) -> float:
        """The time once the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def add_task(self, losses: list[float], examples: list[dict[str, list[int]]]) -> None:
        lengths = [len(example["input_ids"]) for example in examples]
        self.figures.tasks += 1
        self.figures.trained_tokens += sum(lengths)
        self.figures.attention_terms += sum(length**2 for length in lengths)
        self._losses.append(losses)

    def done(self) -> Figures:
        self.figures.seconds = self.now() - self._begun
        self.figures.cpu_seconds = time.process_time() - self._cpu
        self.figures.peak_bytes = peak_bytes(self.device)
        self.take_losses()
        return self.figures

    def take_losses(self) -> None:
        """Average the losses of all tasks so far."""
        if self._losses:
            count = len(self._losses)
            self.figures.loss_first = sum(_mean(losses[: _quarter(losses)]) for losses in self._losses) / count
            self.figures.loss_last = sum(_mean(losses[-_quarter(losses) :]) for losses in self._losses) / count


def _quarter(losses: list[float]) -> int:
    return max(1, len(losses) // 4)


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses)


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TrainerWay(Way):
    """One process: the base model is loaded once; each task resets the adapter, creates a Trainer and calls
    `generate`."""

    def load(self) -> None:
        self.model = put_adapter(load_base(self.workload), self.workload)
        self.start = read_adapter(self.workload)
        work = self.workload.task(self.workload.blocks[0][0])
        few = TaskWork(examples=work.examples[:2], prompts=[work.prompts[0][:1]])
        self._answer(few, Meter(self.workload.device))

    def answer(self, task_ids: list[str]) -> Figures:
        meter = Meter(self.workload.device)
        for task_id in task_ids:
            self._answer(self.workload.task(task_id), meter)
        return meter.done()

    def adapt(self, work: TaskWork) -> list[float]:
        return train_with_trainer(self.model, work, self.workload)

    def _answer(self, work: TaskWork, meter: Meter) -> None:
        begun = meter.now()
        set_peft_model_state_dict(self.model, self.start)
        losses = self.adapt(work)
        adapted = meter.now()
        # Not merged: merging and un-merging in place would accumulate rounding errors in the base weights.
        with arithmetic(self.workload):
            read, produced = generate(self.model, work, self.workload)
        meter.figures.adapt_seconds += adapted - begun
        meter.figures.predict_seconds += meter.now() - adapted
        meter.figures.read_tokens += read
        meter.figures.produced_tokens += produced
        meter.add_task(losses, work.examples)


def arithmetic(workload: Workload) -> contextlib.AbstractContextManager[Any]:
    """Autocast for a bfloat16 model with a float32 adapter."""
    if workload.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(workload.device, dtype=torch.bfloat16)


def _as_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    (row,) = rows
    return {name: torch.tensor([values]) for name, values in row.items()}


def answer_one(workload: Workload, task_id: str) -> Figures:
    """A single task in its own process: load, adapt, merge, predict."""
    meter = Meter(workload.device)
    work = workload.task(task_id)
    model = put_adapter(load_base(workload), workload)
    begun = meter.now()
    losses = train_with_trainer(model, work, workload)
    adapted = meter.now()
    # The process ends with the task, so the adapter never has to be unmerged.
    merged = model.merge_and_unload()
    read, produced = generate(merged, work, workload)
    meter.figures.adapt_seconds = adapted - begun
    meter.figures.predict_seconds = meter.now() - adapted
    meter.figures.read_tokens, meter.figures.produced_tokens = read, produced
    meter.add_task(losses, work.examples)
    return meter.done()
