"""What one evaluation does: choose model and tasks, predict, vote, score, and write submission and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from arcft import __version__
from arcft.arc.task import Task
from arcft.checkpoints import CheckpointError, lock_run, write_run_yaml
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.models.load import load_tokenizer
from arcft.reporting.curves import read_history
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import SUMMARY_FILE
from arcft.runs import results
from arcft.runs.build import config_digest, text_format
from arcft.runs.choose import chosen_tasks, data_fingerprint, default_held_out, tasks_of_run
from arcft.runs.predict import Share, count_prompts, predict_shares
from arcft.runs.restore import ModelHost, restored_format, restored_tokenizer
from arcft.runs.tracked import tracked
from arcft.runs.trained import (
    TrainedRun,
    contradictions,
    is_pattern,
    matching_checkpoints,
    matching_folders,
    open_checkpoint,
)
from arcft.scoring.metrics import METRICS, Scores
from arcft.scoring.predictions import Prediction, read_predictions
from arcft.tracking import Tracker

console = Console()


def evaluate(config: EvaluateConfig, folder: Path, *, explicit: Sequence[str] = ()) -> None:
    """Evaluate what `config` names and write everything into `folder`; goes on where an earlier call was stopped.

    `explicit` are the keys that the user set by hand: they may not contradict a checkpoint.
    """
    values = to_dict(config)
    with lock_run(folder), tracked(config.tracking, values, folder, job="evaluate") as tracker:
        write_run_yaml(folder, {"arcft": __version__, "job": "evaluate", "config": values})
        evaluation = _Evaluation(config, folder, explicit, tracker)
        if config.predictions is not None:
            evaluation.of_predictions()
        elif config.model is not None:
            evaluation.of_base_model()
        elif config.adapters is not None:
            evaluation.of_adapters()
        else:
            evaluation.of_checkpoints()


class _Evaluation:
    """The four things that can be evaluated, with what they share."""

    def __init__(self, config: EvaluateConfig, folder: Path, explicit: Sequence[str], tracker: Tracker) -> None:
        self.config = config
        self.folder = folder
        self.explicit = explicit
        self.tracker = tracker
        self.host = ModelHost(config.inference)

    def of_predictions(self) -> None:
        """Score files made elsewhere; several are voted over together."""
        files = [self.config.predictions] if isinstance(self.config.predictions, str) else self.config.predictions or []
        predictions = [prediction for file in files for prediction in read_predictions(file)]
        tasks = chosen_tasks(self.config.data, None)
        run = self._about(predictions=[str(file) for file in files])
        self._finish(self.folder, " + ".join(Path(file).name for file in files), tasks, predictions, run)

    def of_base_model(self) -> None:
        """A model as it is."""
        config = self.config
        assert config.model is not None
        if config.encoder is None or config.prompt is None:
            raise ConfigError([f"model={config.model.name} names no encoder or prompt: add encoder=... prompt=..."])
        tokenizer = load_tokenizer(config.model)
        length = config.inference.max_seq_length or config.model.max_seq_length
        form = text_format(config.encoder, config.prompt, tokenizer, max_seq_length=length, drop_demonstrations=True)
        if config.data.source == "held_out":
            tasks = default_held_out(config.data, form.builder.num_tokens, length)
        else:
            tasks = chosen_tasks(config.data, form.builder.num_tokens)
        model_config = config.model
        share = Share(tasks, lambda: self.host.base(model_config), form)
        self._predict_and_finish(self.folder, config.model.name, [share], self._about(model=config.model.name))

    def of_checkpoints(self) -> None:
        """One checkpoint, or each that a pattern matches in a sub-folder of its own, and a table over them."""
        pattern = str(self.config.checkpoint)
        paths = matching_checkpoints(pattern)
        if not is_pattern(pattern):
            self._one_checkpoint(open_checkpoint(paths[0]), self.folder)
            return
        one_run = len({path.parent.resolve() for path in paths}) == 1
        scores = {}
        for path in paths:
            name = path.name if one_run else f"{path.parent.name}_{path.name}"
            scores[name] = self._one_checkpoint(open_checkpoint(path), self.folder / name)
        metrics = {name: score.metrics for name, score in scores.items()}
        if not all(metrics.values()):
            return
        plot = results.write_sweep(self.folder, read_history(paths[0].parent), metrics, by_step=one_run)
        errors = {name: score.standard_errors() for name, score in scores.items()}
        console.print(metrics_table(metrics, errors=errors, title=f"{len(metrics)} checkpoints"))
        self.tracker.table("checkpoints", ["checkpoint", *METRICS], [[k, *v.values()] for k, v in metrics.items()])
        if plot is not None:
            console.print(f"metrics against training step: [bold]{plot}[/]", highlight=False, soft_wrap=True)
            self.tracker.picture("sweep", plot)

    def _one_checkpoint(self, run: TrainedRun, folder: Path) -> Scores:
        problems = contradictions(self.explicit, self.config, run.config, ("encoder", "prompt"))
        if problems:
            raise ConfigError(problems)
        share = self._share(run, self._tasks_for(run))
        self._say_what_was_trained_on(run, share.tasks)
        about = self._about(checkpoint=str(run.checkpoint.path), digest=run.checkpoint.digest, step=run.checkpoint.step)
        return self._predict_and_finish(folder, run.name, [share], about, run=run)

    def of_adapters(self) -> None:
        """Each adapter answers the tasks it was adapted to, the checkpoint itself answers the rest."""
        start = open_checkpoint(Path(str(self.config.checkpoint)).expanduser())
        shares, adapted = [], []
        for adapter in self._adapters(start):
            tasks = [task for task in tasks_of_run(adapter, self.config.data) if task.id not in adapted]
            adapted += [task.id for task in tasks]
            shares.append(self._share(adapter, tasks))
        if self.config.data.source != "held_out":
            tasks = chosen_tasks(self.config.data, self._share(start, []).format.builder.num_tokens)
            wanted = {task.id for task in tasks}
            shares = [Share([t for t in share.tasks if t.id in wanted], share.model, share.format) for share in shares]
            rest = [task for task in tasks if task.id not in adapted]
            if rest:
                console.print(f"{len(rest)} of {len(tasks)} tasks have no adapter: the checkpoint answers them")
                shares.append(self._share(start, rest))
        about = self._about(
            checkpoint=str(start.checkpoint.path), digest=start.checkpoint.digest, adapters=str(self.config.adapters)
        )
        self._predict_and_finish(self.folder, f"{start.name} + adapters", shares, about)

    def _adapters(self, start: TrainedRun) -> list[TrainedRun]:
        adapters = []
        for folder in matching_folders("adapters", str(self.config.adapters)):
            if not (folder / "run.yaml").is_file():
                continue
            adapter = open_checkpoint(folder)
            if not adapter.tasks.get("adapted_to"):
                raise CheckpointError(f"adapters: {folder} was not adapted to tasks; make one with data=leave_one_out")
            problems = contradictions(
                ("encoder", "prompt", "model"), adapter.config, start.config, ("encoder", "prompt", "model")
            )
            if problems:
                raise CheckpointError(f"adapters: {folder} does not belong to {start.name}: {'; '.join(problems)}")
            adapters.append(adapter)
        if not adapters:
            raise CheckpointError(f"adapters={self.config.adapters}: none of the matching folders is a training run")
        return adapters

    def _share(self, run: TrainedRun, tasks: list[Task]) -> Share:
        length = self.config.inference.max_seq_length or run.config.training.max_seq_length
        form = restored_format(run, restored_tokenizer(run), length)
        return Share(tasks, lambda: self.host.restored(run), form)

    def _tasks_for(self, run: TrainedRun) -> list[Task]:
        if self.config.data.source == "held_out":
            return tasks_of_run(run, self.config.data)
        return chosen_tasks(self.config.data, self._share(run, []).format.builder.num_tokens)

    def _say_what_was_trained_on(self, run: TrainedRun, tasks: Sequence[Task]) -> None:
        trained = set(run.tasks.get("train", ())) - set(run.tasks.get("adapted_to") or ())
        seen = [task.id for task in tasks if task.id in trained]
        if seen:
            console.print(
                f"[yellow]note:[/] {len(seen)} of {len(tasks)} tasks were trained on ({', '.join(seen[:5])}"
                f"{', ...' if len(seen) > 5 else ''}): their scores say how well they are remembered"
            )

    def _about(self, **values: Any) -> dict[str, Any]:
        return {"arcft": __version__, "seed": self.config.inference.seed, **values}

    def _predict_and_finish(
        self, folder: Path, title: str, shares: list[Share], about: dict[str, Any], run: TrainedRun | None = None
    ) -> Scores:
        tasks = [task for share in shares for task in share.tasks]
        if self.config.dry_run:
            prompts = count_prompts(tasks, self.config.inference)
            console.print(f"{title}: {len(tasks)} tasks, {prompts} prompts (dry run)", highlight=False)
            return Scores(metrics={}, tasks={})
        key = self._key(tasks, run) if run else ""
        found = results.find_evaluation(run.checkpoint.path.parent, key) if run else None
        if found:
            console.print(f"{title}: already evaluated in {found}; copied from there", highlight=False, soft_wrap=True)
            scores = results.reuse_evaluation(found, folder)
            self._show(title, scores, folder, len(tasks), run)
            return scores
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        predictions = predict_shares(
            shares, self.config.inference, folder / results.PREDICTIONS_FILE, title=title, resume=self.folder
        )
        about["seconds"] = round(time.monotonic() - started, 1)
        scores = self._finish(folder, title, tasks, predictions, about, run)
        if run:
            results.record_evaluation(run.checkpoint.path.parent, key, run.checkpoint.path.name, folder)
        return scores

    def _key(self, tasks: Sequence[Task], run: TrainedRun) -> str:
        """What makes two evaluations the same: checkpoint, tasks, and the choices that change what comes out."""
        inference = to_dict(self.config.inference)
        del inference["batch_size"]
        return config_digest(
            {
                "checkpoint": run.checkpoint.digest,
                "tasks": data_fingerprint(tasks),
                "inference": inference,
                "selection": to_dict(self.config.selection),
            }
        )

    def _finish(
        self,
        folder: Path,
        title: str,
        tasks: Sequence[Task],
        predictions: Sequence[Prediction],
        about: dict[str, Any],
        run: TrainedRun | None = None,
    ) -> Scores:
        curves = read_history(run.checkpoint.path.parent) if run else None
        scores = results.write_results(
            folder, title=title, tasks=tasks, predictions=predictions, run=about, curves=curves
        )
        self._show(title, scores, folder, len(tasks), run)
        return scores

    def _show(self, title: str, scores: Scores, folder: Path, num_tasks: int, run: TrainedRun | None) -> None:
        if scores.metrics:
            errors = {title: scores.standard_errors()} if len(scores.tasks) > 1 else None
            console.print(metrics_table({title: scores.metrics}, errors=errors, title=f"{num_tasks} tasks"))
        else:
            console.print(f"{title}: no answers are known, so there are no metrics")
        console.print(f"submission, report and predictions: [bold]{folder}[/]", highlight=False, soft_wrap=True)
        step = run.checkpoint.step if run else 0
        self.tracker.log({f"eval/{name}": value for name, value in scores.metrics.items()}, step)
        self.tracker.picture("eval/summary", folder / SUMMARY_FILE)
