"""model.prune_vocabulary through the programs: train, resume, evaluate, adapt, with and without it."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arcft.checkpoints import last_checkpoint, read_checkpoint
from arcft.config.schema import ConfigError
from arcft.runs.common.signals import Stopped
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import Event, Finished
from tests.support.evaluate_command import answers, evaluated, evaluation_tasks, run_json, trained
from tests.support.train_command import QUICK, SMALL_MODEL, files_of, history, run_train

SLOW = pytest.mark.slow
PRUNE = "model.prune_vocabulary=true"
WAYS = {
    "adapter": ["model.train_modules=[]"],
    "embeddings": [],  # those of SMALL_MODEL: embedding, head and norms beside the adapter
    "whole": ["lora=none"],
}
FEW = ["ttft=per_task", "ttft.max_steps=3"]


@pytest.fixture(scope="module", params=["embeddings", *(pytest.param(way, marks=SLOW) for way in ("adapter", "whole"))])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(way: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp(way) / "run", PRUNE, *WAYS[way])


@pytest.fixture(autouse=True)
def _forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test takes over what another one evaluated."""
    yield
    if "run" in request.fixturenames:
        (request.getfixturevalue("run") / "evaluations.jsonl").unlink(missing_ok=True)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    folder = last_checkpoint(run)
    (file,) = (path for path in folder.glob("*model.safetensors"))
    return load_file(file)


def test_checkpoints_hold_the_full_vocabulary(way: str, run: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", *WAYS[way])
    own, other = weights_of(run), weights_of(whole)
    assert {name: weight.shape for name, weight in own.items()} == {name: one.shape for name, one in other.items()}
    manifests = [read_checkpoint(last_checkpoint(folder)).manifest for folder in (run, whole)]
    assert manifests[0]["base_fingerprint"] == manifests[1]["base_fingerprint"]
    for name in ("tokenizer.json", "tokenizer_config.json", "adapter_config.json", "config.json"):
        assert (name in manifests[0]["files"]) == (name in manifests[1]["files"])
        if name in manifests[0]["files"]:
            assert manifests[0]["files"][name] == manifests[1]["files"][name]


def test_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    assert run_train(tmp_path, f"resume={tmp_path / 'run'}") == 0
    assert files_of(tmp_path / "run" / "checkpoint-6") == files_of(run / "checkpoint-6")
    assert history(tmp_path / "run") == history(run)


@pytest.mark.parametrize("inference", ["greedy", *(pytest.param(name, marks=SLOW) for name in ("sample", "search"))])
def test_answers_are_the_same_without_pruning(inference: str, run: Path, tmp_path: Path) -> None:
    """A grammar decides between kept tokens alone, and so do greedy answers; the random numbers are the same."""
    words = [f"checkpoint={run}", *evaluation_tasks(), f"inference={inference}"]
    found = [answers(evaluated(tmp_path / name, *words, f"prune_vocabulary={name}")) for name in ("true", "false")]
    assert [one[:3] for one in found[0]] == [one[:3] for one in found[1]]
    # Normalised over the tokens that the grammar allows.
    for (*_, own), (*_, other) in zip(*found, strict=True):
        assert own == pytest.approx(other, abs=1e-4)


@SLOW
def test_candidates_are_scored(run: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={run}", *evaluation_tasks(), "selection=score"]
    metrics = [
        run_json(evaluated(tmp_path / name, *words, f"prune_vocabulary={name}"))["metrics"]
        for name in ("true", "false")
    ]
    assert metrics[0] == metrics[1]


@SLOW
def test_what_is_not_pruned_in_training_is_pruned_in_an_evaluation(way: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", *WAYS[way])
    words = [f"checkpoint={whole}", *evaluation_tasks()]
    assert [one[:3] for one in answers(evaluated(tmp_path / "pruned", *words, "prune_vocabulary=true"))] == [
        one[:3] for one in answers(evaluated(tmp_path / "full", *words))
    ]


_record = Queue.record


def _record_and_stop(queue: Queue, event: Event, worker: str) -> None:
    """Record `event`; after the first task that is finished, somebody stops the evaluation."""
    _record(queue, event, worker)
    if isinstance(event, Finished):
        os.kill(os.getpid(), signal.SIGTERM)


@SLOW
def test_adapters_are_trained_resumed_and_used(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"checkpoint={run}", *evaluation_tasks(), *FEW, "ttft.keep_adapters=true"]
    whole = evaluated(tmp_path / "whole", *words)
    (run / "evaluations.jsonl").unlink()
    monkeypatch.setattr(Queue, "record", _record_and_stop)
    with pytest.raises(Stopped):
        evaluated(tmp_path / "again", *words)
    monkeypatch.undo()
    assert sorted(answers(evaluated(tmp_path / "again", *words))) == sorted(answers(whole))
    adapters = [f"checkpoint={run}", *evaluation_tasks(), f"adapters={whole}/adapters/*"]
    for name in ("true", "false"):
        used = answers(evaluated(tmp_path / name, *adapters, f"prune_vocabulary={name}"))
        assert sorted(one[:3] for one in used) == sorted(one[:3] for one in answers(whole))


@SLOW
def test_workers_keep_the_same(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", PRUNE)
    words = [f"checkpoint={run}", *evaluation_tasks(), *FEW]
    alone = answers(evaluated(tmp_path / "alone", *words))
    (run / "evaluations.jsonl").unlink()
    workers = ["ttft.workers=processes", "ttft.num_workers=2"]
    assert answers(evaluated(tmp_path / "workers", *words, *workers)) == alone


def test_a_base_model_is_pruned(tmp_path: Path) -> None:
    model = ["model=tiny", *SMALL_MODEL, "encoder=minimal", "prompt=grid_only", *evaluation_tasks()]
    found = [
        answers(evaluated(tmp_path / name, *model, f"model.prune_vocabulary={name}")) for name in ("true", "false")
    ]
    assert [one[:3] for one in found[0]] == [one[:3] for one in found[1]]


def test_the_model_is_shown_with_what_remains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "run", *QUICK, PRUNE, "dry_run=true") == 0
    out = capsys.readouterr().out
    assert re.search(r"model tiny: 0\.06 of 0\.06 M parameters, .*; 320 of 448 tokens kept", out), out


def test_backends_with_loaders_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.prune_vocabulary=true: unsloth's kernels need the whole vocabulary"):
        trained(tmp_path / "run", PRUNE, "model.backend=unsloth", "model.init=pretrained")
    with pytest.raises(ConfigError, match="vLLM loads models itself, with all tokens"):
        evaluated(tmp_path / "run", "checkpoint=RUN", "inference=vllm", "prune_vocabulary=true", *evaluation_tasks())
    run = trained(tmp_path / "run", PRUNE, "training.max_steps=1", "training.generation_tasks=0")
    with pytest.raises(ConfigError, match="vLLM loads models with all tokens; add prune_vocabulary=false"):
        evaluated(tmp_path / "vllm", f"checkpoint={run}", "inference=vllm", *evaluation_tasks())
    with pytest.raises(ConfigError, match="prune_vocabulary= has no effect without checkpoint="):
        evaluated(tmp_path / "run", "model=tiny", "prune_vocabulary=true", *evaluation_tasks())
