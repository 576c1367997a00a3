"""What one training run does: choose tasks, build model and stream, train, and show what was learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft import __version__
from arcft.arc.sources import PairPool, TaskSampler
from arcft.arc.task import Task
from arcft.arc.views import leave_one_out, test_problem
from arcft.checkpoints import Origin, find_checkpoints, lock_run, remove_leftovers, write_run_yaml
from arcft.config.duration import parse_duration
from arcft.config.run import TrainConfig
from arcft.config.schema import to_dict
from arcft.models.load import base_fingerprint, load_model, load_tokenizer, resolve_dtype
from arcft.models.lora import apply_lora, load_adapter, trainable_parameters
from arcft.reporting.previews import grids_side_by_side, metrics_table, predictions_picture, print_example
from arcft.reporting.words import count
from arcft.runs.build import TextFormat, choose_device, text_format, transform_drawer
from arcft.runs.callbacks import GenerationMetrics, ProgressBar, Recorder
from arcft.runs.choose import CountTokens, TaskSets, data_fingerprint, task_sets
from arcft.runs.edge import Stopped, stop_on_signals
from arcft.runs.estimate import estimate
from arcft.runs.progress import progress_bar
from arcft.runs.results import METRICS_FILE, write_json
from arcft.runs.tracked import tracked
from arcft.runs.trained import check_base, open_checkpoint
from arcft.text.examples import ExampleStream
from arcft.text.tokens import IGNORED, Example, choose_pad_token
from arcft.tracking import Tracker
from arcft.training.arguments import make_training_arguments
from arcft.training.saving import Saving
from arcft.training.schedulers import schedule_warnings
from arcft.training.stopping import StopRequest
from arcft.training.trainer import ArcftTrainer

console = Console()
PICTURE = "preview.png"
SHOWN_TESTS = 8


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything a run needs but the model."""

    tokenizer: PreTrainedTokenizerBase
    form: TextFormat
    sets: TaskSets
    stream: ExampleStream
    held_out_examples: list[Example]

    @property
    def tasks(self) -> dict[str, Any]:
        """Task ids by use, as run.yaml keeps them."""
        return {
            "train": self.sets.train_ids,
            "held_out": [task.id for task in self.sets.held_out],
            "adapted_to": self.sets.train_ids if self.stream.view == "leave_one_out" else None,
        }


def train(config: TrainConfig, folder: Path) -> None:
    """Train as `config` says, everything in `folder`; goes on from its last checkpoint where config.resume is set."""
    prepared = prepare(config)
    _say_tasks(config, prepared)
    if config.preview:
        _show_first_example(prepared)
    for warning in schedule_warnings(config.scheduler, config.training.max_steps):
        console.print(f"[yellow]note:[/] {warning}", highlight=False, soft_wrap=True)
    device = choose_device()
    model, fingerprint = build_model(config, device)
    _say_model(config, model, device)
    if config.dry_run:
        _show_estimate(config, model)
        return
    values = to_dict(dataclasses.replace(config, resume=None))
    stored = {"arcft": __version__, "job": "train", "config": values, "tasks": prepared.tasks}
    with lock_run(folder), tracked(config.tracking, values, folder, job="train") as tracker:
        remove_leftovers(folder)
        write_run_yaml(folder, stored)
        origin = Origin(
            base_model=str(config.model.path),
            base_fingerprint=fingerprint,
            data_fingerprint=data_fingerprint(item for _, items in prepared.sets.train for item in items),
            seed=config.training.seed,
        )
        saving = Saving(
            tokenizer=prepared.tokenizer,
            run_config=stored,
            origin=origin,
            save_total_limit=config.training.save_total_limit,
        )
        _train_and_close(config, folder, prepared, model, device, saving, tracker)


def prepare(config: TrainConfig) -> Prepared:
    """Tokenizer, text format, task sets and the stream of examples; raises ArcftError for what can't be trained on."""
    tokenizer = load_tokenizer(config.model)
    training = config.training
    form = text_format(
        config.encoder,
        config.prompt,
        tokenizer,
        max_seq_length=training.max_seq_length,
        drop_demonstrations=training.drop_demonstrations,
        loss_on=training.loss_on,
    )
    limits = [config.data.max_tokens, None if training.drop_demonstrations else training.max_seq_length]
    sets = task_sets(
        config.data,
        _count_tokens(form, config.data.view),
        min((limit for limit in limits if limit is not None), default=None),
    )
    stream = ExampleStream(
        TaskSampler(sets.train, seed=training.seed),
        transform_drawer(config.augmentation),
        form.builder,
        length=training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps,
        seed=training.seed,
        view=config.data.view,
        input_from_inputs=config.augmentation.input_from_inputs,
    )
    stream.check()
    return Prepared(tokenizer, form, sets, stream, _held_out_examples(form, sets.held_out))


def _count_tokens(form: TextFormat, view: str) -> CountTokens:
    """Tokens that a task takes as it is learned: its longest test, or the shortest of its demonstrations in turn."""
    if view == "test":
        return form.builder.num_tokens
    return lambda task: min(form.builder.num_tokens(left_out) for left_out in leave_one_out(task))


def _held_out_examples(form: TextFormat, tasks: list[Task]) -> list[Example]:
    problems = [
        test_problem(task, index) for task in tasks for index, pair in enumerate(task.test) if pair.output is not None
    ]
    examples = [form.builder.example(problem) for problem in problems]
    return [example for example in examples if example is not None]


def build_model(config: TrainConfig, device: torch.device) -> tuple[PreTrainedModel | PeftModel, str]:
    """The model to train, and the fingerprint of its base weights."""
    # All weights that are trained are float32; frozen ones may have the dtype of the arithmetic.
    dtype = resolve_dtype(config.training.dtype, device) if config.lora.enabled else torch.float32
    base = load_model(config.model, dtype=dtype, device=device, max_seq_length=config.training.max_seq_length)
    fingerprint = base_fingerprint(config.model, base)
    if not config.lora.enabled:
        return base, fingerprint
    if config.lora.start is not None:
        start = open_checkpoint(Path(config.lora.start).expanduser())
        check_base(start, fingerprint, str(config.model.path))
        return load_adapter(base, start.checkpoint.path, trainable=True), fingerprint
    adapted = apply_lora(
        base, config.lora, config.model.train_modules, seed=config.training.seed, backend=config.model.backend
    )
    return adapted, fingerprint


def _train_and_close(
    config: TrainConfig,
    folder: Path,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    device: torch.device,
    saving: Saving,
    tracker: Tracker,
) -> None:
    checkpoints = find_checkpoints(folder) if config.resume is not None else []
    start = int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0
    max_steps = config.training.max_steps
    if checkpoints:
        console.print(f"going on from {checkpoints[-1]}", highlight=False, soft_wrap=True)
    tasks = prepared.sets.held_out[: config.training.generation_tasks]
    stop = StopRequest(None if config.training.max_time is None else parse_duration(config.training.max_time))
    with progress_bar("training", max_steps, start) as advance, stop_on_signals(stop.request) as received:
        generation = GenerationMetrics(prepared.form, tasks, config.inference, advance)
        recorder = Recorder(folder, tracker)
        trainer = ArcftTrainer(
            model=model,
            args=make_training_arguments(config.training, folder, device),
            train_dataset=prepared.stream,  # type: ignore[arg-type]
            eval_dataset=prepared.held_out_examples,
            pad_id=choose_pad_token(prepared.tokenizer),
            optimizer_config=config.optimizer,
            scheduler_config=config.scheduler,
            eval_steps=config.training.eval_steps,
            saving=saving,
            more_metrics=generation if tasks else None,
            best_metric=config.training.best_metric if tasks else None,
            callbacks=[recorder, ProgressBar(advance)],
            stop=stop,
        )
        trainer.train(checkpoints[-1] if checkpoints else None)
        if start == max_steps and trainer.can_evaluate:
            # Nothing was left to train: predicted again for the closing, but recorded already.
            trainer.remove_callback(recorder)
            trainer.evaluate()
    if trainer.state.global_step < max_steps:
        message = (
            f"stopped at step {trainer.state.global_step} of {max_steps} ({stop.reason}) and saved; go on with: "
            f"python train.py resume={folder}"
        )
        if received:
            raise Stopped(received[0], message)
        console.print(message, highlight=False, soft_wrap=True)
        return
    _close(config, folder, generation, trainer, tracker)


def _close(
    config: TrainConfig, folder: Path, generation: GenerationMetrics, trainer: ArcftTrainer, tracker: Tracker
) -> None:
    """The closing table, a picture of predicted against true grids, and what to type next."""
    step, best = trainer.state.global_step, trainer.best_step
    history = trainer.state.log_history
    losses = {name: entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry}
    metrics = generation.scores.metrics
    write_json(folder / METRICS_FILE, {"step": step, "best_step": best, **losses, "metrics": metrics})
    tracker.summary({"best_step": best, **{f"final/{name}": value for name, value in (losses | metrics).items()}})
    if metrics:
        for task in generation.tasks[:2]:
            attempts = generation.attempts.get((task.id, 0), ())
            grids = [("input", task.test[0].input), ("true", task.test[0].output)]
            console.print(f"\n{task.id}")
            console.print(grids_side_by_side([*grids, ("predicted", attempts[0] if attempts else None)]))
        console.print(metrics_table({f"step {step}": metrics}, title=count(len(generation.tasks), "held-out task")))
        predictions_picture(folder / PICTURE, generation.tasks, generation.attempts, SHOWN_TESTS)
        tracker.picture("preview", folder / PICTURE)
        rows = [[task, *values.values()] for task, values in generation.scores.tasks.items()]
        tracker.table("tasks", ["task", *metrics], rows)
        console.print(f"predicted and true grids: [bold]{folder / PICTURE}[/]", highlight=False, soft_wrap=True)
    console.print(", ".join(f"{name} {value:.3f}" for name, value in losses.items()), highlight=False)
    if tracker.where:
        console.print(f"W&B: {tracker.where}", highlight=False, soft_wrap=True)
    kept = f"checkpoint-{step}" + (f", best {config.training.best_metric} in checkpoint-{best}" if best else "")
    console.print(f"checkpoints in [bold]{folder}[/] ({kept}). Next:", highlight=False, soft_wrap=True)
    console.print(f"  python evaluate.py checkpoint={folder}", style="bold", highlight=False, soft_wrap=True)


def _say_tasks(config: TrainConfig, prepared: Prepared) -> None:
    sets = prepared.sets
    items = [item for _, group in sets.train for item in group]
    pools = sum(isinstance(item, PairPool) for item in items)
    words = f"{count(len(items), 'task')} to train on"
    if pools:
        words += f" ({pools} of them pools of many pairs)"
    words += f", {len(sets.held_out)} held out"
    if sets.too_long:
        words += f"; {len(sets.too_long)} left out, longer than {config.training.max_seq_length} tokens"
    if sets.leaked:
        words += f"; {len(sets.leaked)} left out, equal to a held-out task or sharing a pair with it"
    console.print(words, highlight=False, soft_wrap=True)


def _show_first_example(prepared: Prepared) -> None:
    example = prepared.stream[0]
    tokens = [str(prepared.tokenizer.decode([token])) for token in example.input_ids]
    print_example(console, tokens, [label != IGNORED for label in example.labels])


def _say_model(config: TrainConfig, model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = trainable_parameters(model)
    dtype = str(resolve_dtype(config.training.dtype, device)).removeprefix("torch.")
    console.print(
        f"model {config.model.name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained, "
        f"{dtype} on {device}",
        highlight=False,
        soft_wrap=True,
    )


def _show_estimate(config: TrainConfig, model: PreTrainedModel | PeftModel) -> None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    shape = base.config.get_text_config()
    table = Table(title="dry run: nothing was trained or written", title_justify="left", box=None, show_header=False)
    for name, value in estimate(model, config, shape.hidden_size, shape.num_hidden_layers).rows():
        table.add_row(name, value)
    console.print(table)
