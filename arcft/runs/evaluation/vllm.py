"""inference=vllm: checkpoints and base models as vLLM, in another process, reads them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence

from arcft.config.inference import VllmConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.schema import ConfigError
from arcft.decoding.vllm_engine import EngineSettings, start_vllm
from arcft.decoding.watchdog import Watchdog
from arcft.models.fingerprint import stored_fingerprint
from arcft.models.source import resolve_path
from arcft.prediction.predict_vllm import VllmJob, VllmModel, predict_jobs
from arcft.protocols import TestKey
from arcft.runs.common.signals import end_on_signals
from arcft.runs.setup.checkpoint_config import TrainedRun, check_base
from arcft.runs.setup.restore import base_model
from arcft.scoring.predictions import Prediction


def served_model(model: ModelConfig) -> VllmModel:
    """A base model for vLLM; ConfigError where vLLM can't load what transformers would."""
    path = resolve_path(str(model.path))
    problems = []
    if path.endswith(".gguf"):
        problems.append(f"inference=vllm reads folders and hub ids, not {path}; use inference=greedy")
    for key, value, usual in (
        ("init", model.init, "pretrained"),
        ("quantization", model.quantization, "none"),
        ("trust_remote_code", model.trust_remote_code, False),
    ):
        if value != usual:
            said = str(value).lower() if isinstance(value, bool) else value
            problems.append(f"inference=vllm serves no model with model.{key}={said}; use inference=greedy")
    if problems:
        raise ConfigError(problems)
    return VllmModel(model=path)


def served_run(run: TrainedRun) -> VllmModel:
    """The model of `run` for vLLM; ArcftError where its base model has changed, or vLLM can't serve its adapter."""
    served = served_model(base_model(run))
    lora, model = run.config.lora, run.config.model
    if not isinstance(lora, LoraConfig):
        return served
    check_base(run, stored_fingerprint(model), str(model.path))
    problems = []
    if lora.use_dora:
        problems.append("inference=vllm serves no adapters with lora.use_dora=true; use inference=greedy")
    if model.train_modules:
        problems.append(
            f"inference=vllm serves no adapters with model.train_modules={model.train_modules}; use inference=greedy"
        )
    if problems:
        raise ConfigError(problems)
    return VllmModel(model=served.model, adapter=str(run.checkpoint.path), rank=lora.r)


def predict_with_vllm(
    jobs: Sequence[VllmJob],
    config: VllmConfig,
    *,
    done: Collection[TestKey],
    say: Callable[[str], None],
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after another; each base model gets an engine, restarted if it freezes."""
    for model, group in itertools.groupby(jobs, key=lambda job: job.served.model):
        own = list(group)
        keys = ((problem.id, index) for job in own for problem in job.problems for index in range(len(problem.answers)))
        if all(key in done for key in keys):
            continue
        settings = EngineSettings(
            model=model,
            dtype=config.dtype,
            max_seq_length=max(job.builder.max_seq_length for job in own),
            adapters=len({job.served.adapter for job in own}),
            rank=max(job.served.rank for job in own),
            seed=config.seed,
        )
        with Watchdog(
            functools.partial(start_vllm, settings),
            name="the vLLM engine",
            key="inference.restart_seconds",
            seconds=config.restart_seconds,
            say=say,
        ) as engine:
            # A batch takes minutes, and what vLLM has of it can't be saved.
            yield from predict_jobs(own, config, end_on_signals()(engine.ask), done=done)
