"""Resolve an evaluation's config to its targets: models with the tasks that each answers, read and checked.

Nothing is written here, so mistakes are reported before any file exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from arcft import __version__
from arcft.config import version_0_1
from arcft.config.data import DataConfig
from arcft.config.inference import ONLY_SPEED, VllmConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.config.ttft import TtftConfig
from arcft.console import note, say
from arcft.files import data_sha256
from arcft.models.limits import refuse_beyond, stored_position_limit
from arcft.models.load import load_tokenizer
from arcft.protocols import Kind, Problem
from arcft.runs.evaluation.predict import ModelAssignment
from arcft.runs.evaluation.prediction_files import given_predictions
from arcft.runs.evaluation.vllm import served_model, served_run
from arcft.runs.setup.arithmetic import Arithmetic, Arithmetics
from arcft.runs.setup.build import check_answers, example_builder, view_dealer
from arcft.runs.setup.checkpoint_config import (
    OWN_FORMAT,
    TrainedRun,
    contradictions,
    distinct_names,
    is_pattern,
    matching_checkpoints,
    open_checkpoint,
    own_format,
)
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.leaks import warn_trained_on
from arcft.runs.setup.restore import ModelHost, base_model, base_of_adapters, restored_builder, restored_tokenizer
from arcft.runs.setup.task_adapters import adapted_runs, tasks_adapted_to
from arcft.runs.setup.tasks import all_tasks, default_data, default_held_out, filter_tasks, tasks_of_run
from arcft.runs.setup.ttft_settings import ttft_identity
from arcft.runs.setup.vocabulary import run_tokenizer
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder
from arcft.text.pruned_tokenizer import kept_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """One checkpoint, model or set of predictions; it gets one score, one submission and one report."""

    kind: Kind
    name: str
    """Short, for tables and progress bars."""

    title: str
    """For report and picture."""

    tasks: list[Problem]
    submitted: list[Problem]
    """All tasks of the set that `tasks` were chosen from: the submission has an entry for each."""

    shares: list[ModelAssignment]
    predictions: list[Prediction] | None = None
    """Predictions read from files; `shares` is empty then."""

    key: str
    """sha256 of models, tasks and settings: equal for evaluations with equal results."""

    about: dict[str, Any]
    """The origin of the predictions, for metrics.json and the report."""

    run: TrainedRun | None = None
    """The run of the single checkpoint that answers all tasks: its history is shown, its index lists the evaluation."""

    arithmetic: Arithmetic | None = None
    """Of the forward passes; None where there are none, or another process chooses it."""


def resolve_targets(
    config: EvaluateConfig, explicit: Sequence[str], arithmetics: Arithmetics
) -> list[EvaluationTarget]:
    """The targets of `config`, whose paths are absolute: one, or for a pattern of checkpoints one each.

    `explicit` are the keys that the user set by hand: they may not contradict a checkpoint.
    """
    finder = _Finder(config, explicit, arithmetics)
    if config.predictions is not None:
        return [finder.predictions()]
    if config.adapters is not None:
        return [finder.adapters()]
    if config.model is not None:
        return [finder.base_model()]
    return finder.checkpoints()


class _Finder:
    def __init__(self, config: EvaluateConfig, explicit: Sequence[str], arithmetics: Arithmetics) -> None:
        self.config = config
        self.explicit = explicit
        self.arithmetics = arithmetics
        self.kind = kind_of(config.data)
        self.deal_views = view_dealer(self.kind, config.inference)
        self.host = ModelHost(config.inference)
        self._builders: dict[str, ExampleBuilder] = {}
        self._said: set[str] = set()

    def predictions(self) -> EvaluationTarget:
        """Prediction files; attempts are selected from all of them together."""
        given = given_predictions(self.config, self.explicit)
        return self._subject(
            given.name,
            "Predictions of " + given.name,
            [],
            given.about,
            submitted=given.submitted,
            tasks=given.tasks,
            predictions=given.predictions,
            of=data_sha256({"predictions": [one.to_json(self.kind.answer_field) for one in given.predictions]}),
        )

    def base_model(self) -> EvaluationTarget:
        """A base model without any adapter."""
        config, model = self.config, self.config.model
        assert model is not None
        builder = self._base_builder(model)
        if config.data.is_held_out:
            everything = default_held_out(
                self.kind,
                builder.num_tokens,
                model.recommended.data.max_tokens or model.recommended.training.max_seq_length,
            )
        else:
            everything = all_tasks(config.data)
        tasks = filter_tasks(everything, config.data, builder.num_tokens, self._say_once)
        seen = warn_trained_on(self.kind, model, tasks)
        about = {"model": model.name, "path": str(model.path), "trained_on": len(seen)}
        arithmetic = self.arithmetics.of(model.name, [model])
        shares = [self._base_share(model, builder, tasks, arithmetic)]
        title = f"{model.name}, as it is"
        return self._subject(model.name, title, shares, about, submitted=everything, arithmetic=arithmetic)

    def _base_builder(self, model: ModelConfig) -> ExampleBuilder:
        """The builder of a base model, in the format that it recommends or that the config names."""
        config = self.config
        missing = [name for name in OWN_FORMAT if name in self.kind.configs and getattr(config, name) is None]
        if missing:
            add = " ".join(f"{name}=..." for name in missing)
            raise ConfigError([f"model={model.name} names no {' or '.join(missing)}: add {add}"])
        tokenizer = self._run_tokenizer(model, load_tokenizer(model), config, config.data)
        length = config.inference.max_seq_length or model.recommended.training.max_seq_length
        refuse_beyond(
            stored_position_limit(model),
            key="inference.max_seq_length"
            if config.inference.max_seq_length
            else "model.recommended.training.max_seq_length",
            value=length,
            path=str(model.path),
        )
        builder = example_builder(
            self.kind,
            config.encoder,
            config.prompt,
            tokenizer,
            positions=model.positions,
            max_seq_length=length,
            drop_demonstrations=True,
        )
        check_answers(builder, config.inference, model)
        return builder

    def _base_share(
        self, model: ModelConfig, builder: ExampleBuilder, tasks: list[Problem], arithmetic: Arithmetic | None
    ) -> ModelAssignment:
        # Digests are of what version 0.1.0 wrote, so that its evaluations are found again.
        written = version_0_1.evaluation_written(self.config)
        identity = data_sha256({name: written[name] for name in ("model", *OWN_FORMAT)})
        served = served_model(model) if isinstance(self.config.inference, VllmConfig) else None
        dtype = arithmetic.dtype if arithmetic else None
        return ModelAssignment(
            tasks, lambda: self.host.plain(model, _kept(builder), dtype), builder, self.deal_views, identity, served
        )

    def checkpoints(self) -> list[EvaluationTarget]:
        """One checkpoint, or each that a pattern matches."""
        paths = matching_checkpoints(str(self.config.checkpoint))
        runs = [self._open(path) for path in paths]
        targets = []
        notes: dict[tuple[Path, str], list[str]] = {}
        for name, run in zip(distinct_names(paths), runs, strict=True):
            self._refuse_contradictions(run)
            everything = tasks_of_run(run) if self.config.data.is_held_out else all_tasks(self.config.data)
            tasks = filter_tasks(everything, self.config.data, self._builder(run).num_tokens, self._say_once)
            known = (run.folder, self.kind.fingerprint(tasks))
            if known not in notes:
                notes[known] = warn_trained_on(self.kind, run, tasks)
            about = {**_about(run), "trained_on": len(notes[known])}
            title = f"{run.config.model.name}, {name}"
            arithmetic = self.arithmetics.of(name, [run])
            shares = [self._share(run, tasks, arithmetic)]
            targets.append(
                self._subject(name, title, shares, about, submitted=everything, run=run, arithmetic=arithmetic)
            )
        return targets

    def adapters(self) -> EvaluationTarget:
        """Each adapter answers the tasks it was adapted to, the checkpoint or model itself answers the rest."""
        config = self.config
        start: TrainedRun | ModelConfig
        if config.model is not None:
            start = config.model
            builder = self._base_builder(start)
            about: dict[str, Any] = {"model": start.name, "path": str(start.path)}
            adapted = adapted_runs(str(config.adapters), config, f"model={start.name}", None)
        else:
            start = self._start_of_adapters()
            builder = self._builder(start)
            about = _about(start)
            # A run of the whole model is the base of its adapters, wherever it lies now.
            moved = config.base_model if isinstance(start.config.lora, LoraConfig) else str(start.checkpoint.path)
            belongs = dataclasses.replace(start.config, model=base_of_adapters(start))
            adapted = adapted_runs(str(config.adapters), belongs, str(start.checkpoint.path), moved)
        everything = tasks_adapted_to(adapted) if config.data.is_held_out else all_tasks(config.data)
        tasks = filter_tasks(everything, config.data, builder.num_tokens, self._say_once)
        answering: dict[Path, tuple[TrainedRun, list[Problem]]] = {}
        for task in tasks:
            if task.id in adapted:
                run = adapted[task.id]
                answering.setdefault(run.checkpoint.path, (run, []))[1].append(task)
        arithmetic = self.arithmetics.of("adapters", [start, *(run for run, _ in answering.values())])
        shares = [self._share(run, own, arithmetic) for run, own in answering.values()]
        # The start comes last, so that adapters replace each other on one base model.
        rest = [task for task in tasks if task.id not in adapted]
        if rest:
            say(f"{len(rest)} of {len(tasks)} tasks have no adapter: the model that they start from answers them")
            if isinstance(start, ModelConfig):
                shares.append(self._base_share(start, builder, rest, arithmetic))
            else:
                shares.append(self._share(start, rest, arithmetic))
        about = about | {
            "adapters": {run.checkpoint.path.as_posix(): [task.id for task in own] for run, own in answering.values()},
            "trained_on": len(warn_trained_on(self.kind, start, tasks)),
        }
        name = start.name if isinstance(start, ModelConfig) else f"{start.config.model.name}, {start.name}"
        title = f"{name} and {len(answering)} adapters"
        return self._subject("adapters", title, shares, about, submitted=everything, arithmetic=arithmetic)

    def _start_of_adapters(self) -> TrainedRun:
        if is_pattern(str(self.config.checkpoint)):
            raise ConfigError([f"checkpoint={self.config.checkpoint}: with adapters= it names one run or checkpoint"])
        start = self._open(Path(str(self.config.checkpoint)))
        self._refuse_contradictions(start)
        return start

    def _refuse_contradictions(self, run: TrainedRun) -> None:
        trained = kind_of(run.config.data)
        if trained.name != self.kind.name:
            raise ConfigError(
                [
                    f"data.kind={self.kind.name}: {run.checkpoint.path} was trained on problems of kind "
                    f"{trained.name}; use data.kind={trained.name}"
                ]
            )
        problems = contradictions(self.explicit, self.config, run.config, OWN_FORMAT)
        if problems:
            raise ConfigError(problems)

    def _share(self, run: TrainedRun, tasks: list[Problem], arithmetic: Arithmetic | None) -> ModelAssignment:
        served = served_run(run) if isinstance(self.config.inference, VllmConfig) else None
        builder = self._builder(run)
        dtype = arithmetic.dtype if arithmetic else None
        return ModelAssignment(
            tasks,
            lambda: self.host.restored(run, _kept(builder), dtype),
            builder,
            self.deal_views,
            run.checkpoint.digest,
            served,
        )

    def _builder(self, run: TrainedRun) -> ExampleBuilder:
        """The builder of a run, cached by its format: hundreds of adapters share one tokenizer."""
        length = self.config.inference.max_seq_length or run.config.training.max_seq_length
        files: Mapping[str, Any] = run.checkpoint.manifest["files"]
        tokenizer = {name: entry["sha256"] for name, entry in files.items() if "token" in name or "template" in name}
        pruned = run.config.model.prune_vocabulary
        key = data_sha256({**own_format(run.config), "tokenizer": tokenizer, "length": length, "pruned": pruned})
        if key not in self._builders:
            if length > run.config.training.max_seq_length:
                limit = stored_position_limit(base_model(run))
                path = str(run.config.model.path)
                refuse_beyond(limit, key="inference.max_seq_length", value=length, path=path)
            own = self._run_tokenizer(base_model(run), restored_tokenizer(run), run.config, run.config.data)
            builder = restored_builder(run, own, length)
            check_answers(builder, self.config.inference, base_model(run))
            self._builders[key] = builder
        return self._builders[key]

    def _open(self, path: Path) -> TrainedRun:
        run = open_checkpoint(path, self.config.base_model, self.config.prune_vocabulary)
        if isinstance(self.config.inference, VllmConfig) and run.config.model.prune_vocabulary:
            raise ConfigError(
                [
                    f"inference=vllm: the run of {run.checkpoint.path} pruned its vocabulary, and vLLM loads models "
                    "with all tokens; add prune_vocabulary=false"
                ]
            )
        return run

    def _run_tokenizer(
        self,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        form: EvaluateConfig | TrainConfig,
        trained_on: DataConfig,
    ) -> PreTrainedTokenizerBase:
        data = trained_on if self.config.data.is_held_out else self.config.data
        return run_tokenizer(
            self.kind,
            model,
            tokenizer,
            encoder=form.encoder,
            prompt=form.prompt,
            data=default_data() if data.is_held_out else data,
            augmentation=self.config.augmentation,
        )

    def _say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            note(words)

    def _subject(
        self,
        name: str,
        title: str,
        shares: list[ModelAssignment],
        about: dict[str, Any],
        *,
        submitted: Sequence[Problem],
        tasks: Sequence[Problem] | None = None,
        predictions: list[Prediction] | None = None,
        run: TrainedRun | None = None,
        of: str = "",
        arithmetic: Arithmetic | None = None,
    ) -> EvaluationTarget:
        inference = {key: value for key, value in to_dict(self.config.inference).items() if key not in ONLY_SPEED}
        selection = to_dict(self.config.selection)
        # Digests are of what version 0.1.0 wrote, so that its evaluations are found again.
        written = version_0_1.evaluation_written(self.config)
        about = about | {"selection": selection}
        answers = [[share.identity, self.kind.fingerprint(share.tasks)] for share in shares]
        tasks = [task for share in shares for task in share.tasks] if tasks is None else tasks
        key: dict[str, Any] = {
            "answers": answers or [[of, self.kind.fingerprint(tasks)]],
            "selection": {name: value for name, value in written["selection"].items() if value is not None},
        }
        if shares:
            key["inference"] = {name: value for name, value in written["inference"].items() if name not in ONLY_SPEED}
            about = about | {"inference": {name: value for name, value in inference.items() if value is not None}}
        if arithmetic is not None:
            about = about | {"dtype": arithmetic.dtype}
            key |= arithmetic.in_key if self.config.inference.dtype == "auto" else {}
        if self.config.prune_vocabulary is not None:
            key["prune_vocabulary"] = self.config.prune_vocabulary
        if isinstance(self.config.ttft, TtftConfig):
            adapting = ttft_identity(self.config)
            key |= adapting
            about = about | {"ttft": {name: value for name, value in adapting["ttft"].items() if value is not None}}
        return EvaluationTarget(
            kind=self.kind,
            name=name,
            title=title,
            tasks=list(tasks),
            submitted=list(submitted),
            shares=shares,
            predictions=predictions,
            key=data_sha256(key),
            about={"arcft": __version__, **about},
            run=run,
            arithmetic=arithmetic,
        )


def _about(run: TrainedRun) -> dict[str, Any]:
    return {
        "model": run.config.model.name,
        "checkpoint": str(run.checkpoint.path),
        "digest": run.checkpoint.digest,
        "step": run.checkpoint.step,
    }


def _kept(builder: ExampleBuilder) -> tuple[int, ...] | None:
    return kept_tokens(builder.tokenization.tokenizer)
