"""vLLM, tested against a stub (tests/support/stand_in_vllm), not yet run on a GPU: the arguments that it gets, how its
output is read, and whole evaluations."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from arcft.checkpoints import CheckpointError
from arcft.config.inference import VllmConfig
from arcft.config.model import ModelConfig
from arcft.config.schema import ConfigError
from arcft.decoding.core.completion import Completion
from arcft.decoding.vllm_engine import (
    EngineSettings,
    Request,
    VllmError,
    engine_options,
    read_output,
    require_vllm,
    sampling_options,
)
from arcft.models.fingerprint import base_fingerprint, stored_fingerprint
from arcft.models.load import load_model
from arcft.prediction.predict import TOO_LONG
from arcft.prediction.predict_vllm import VllmJob, VllmModel, predict_jobs
from arcft.problems.arc.task import Pair, Task, as_grid
from arcft.runs.evaluation.vllm import served_model
from tests.support.evaluate_command import (
    SMALL_EVALUATION_TASKS,
    answers,
    evaluated,
    evaluation_tasks,
    predicted,
    trained,
)
from tests.support.paths import SUPPORT
from tests.support.small_engine import deal_views, make_builder, small_tasks
from tests.support.train_command import ARCHITECTURES, ids

SETTINGS = EngineSettings(model="/models/qwen", dtype="bfloat16", max_seq_length=4096, adapters=0, rank=0, seed=3)
CONFIG = VllmConfig(predictions_per_test=3, batch_size=7, augmentations="all", max_new_tokens=5, restart_seconds=60.0)


def test_an_engine_is_told_what_it_serves() -> None:
    plain = {
        "model": "/models/qwen", "skip_tokenizer_init": True, "dtype": "bfloat16", "max_model_len": 4096, "seed": 3,
    }  # fmt: skip
    assert engine_options(SETTINGS) == plain
    for rank, adapters, room, side_by_side in ((16, 1, 16, 1), (20, 3, 32, 3), (512, 400, 512, 8)):
        settings = dataclasses.replace(SETTINGS, rank=rank, adapters=adapters)
        assert engine_options(settings) == {
            **plain, "enable_lora": True, "max_lora_rank": room, "max_loras": side_by_side,
        }  # fmt: skip
    with pytest.raises(VllmError, match=r"lora\.r=513: vLLM serves adapters up to rank 512; use inference=greedy"):
        engine_options(dataclasses.replace(SETTINGS, rank=513))


def test_a_request_asks_for_the_likeliest_tokens_up_to_our_own_end() -> None:
    assert sampling_options(Request([1, 2], 40, [7, 9])) == {
        "temperature": 0.0, "max_tokens": 40, "ignore_eos": True, "stop_token_ids": [7, 9], "logprobs": 0,
        "detokenize": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((4, 5, 9), Completion([4, 5], -1.5, 3, True)),
        ((4, 5, 6), Completion([4, 5, 6], -1.5, 3, False)),
        ((7,), Completion([], -1.5, 1, True)),
    ],
)
def test_results_are_read_with_their_end(tokens: tuple[int, ...], expected: Completion) -> None:
    output = SimpleNamespace(token_ids=tokens, cumulative_logprob=-1.5, finish_reason="stop")
    assert read_output(output, Request([1, 2], 3, [7, 9])) == expected


@pytest.mark.parametrize("logprob", [None, math.nan, -math.inf])
def test_log_probabilities_that_are_no_numbers_are_an_error(logprob: float | None) -> None:
    with pytest.raises(VllmError, match=r"the weights are damaged, or overflow in this dtype"):
        read_output(SimpleNamespace(token_ids=[4], cumulative_logprob=logprob), Request([1], 3, [7]))


def test_without_the_package_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    expected = "inference=vllm needs a GPU and the extra: pip install 'arcft[vllm]'; or use inference=greedy, which "
    with pytest.raises(VllmError) as caught:
        evaluated(tmp_path / "x", "model=tiny", "model.positions=none", "inference=vllm", *evaluation_tasks())
    assert str(caught.value).startswith(expected)
    assert not (tmp_path / "x").exists()
    with pytest.raises(VllmError):
        require_vllm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "{here}/model.gguf"}, "reads folders and hub ids, not "),
        ({"init": "random"}, r"serves no model with model\.init=random; use inference=greedy"),
        ({"quantization": "nf4"}, r"serves no model with model\.quantization=nf4"),
        ({"trust_remote_code": True}, r"serves no model with model\.trust_remote_code=true"),
    ],
)
def test_what_it_would_not_load_as_transformers_does_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    (tmp_path / "model.gguf").touch()
    values = {name: str(value).replace("{here}", str(tmp_path)) if name == "path" else value
              for name, value in changes.items()}  # fmt: skip
    config = ModelConfig(name="m", **{"path": str(tmp_path), **values})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        served_model(config)


def test_tests_are_asked_in_batches_over_tasks_and_adapters() -> None:
    tasks = small_tasks(4)
    long = Task("long", train=(Pair(as_grid([[0] * 30] * 30), as_grid([[1]])),), test=(Pair(as_grid([[1]])),))
    builder = make_builder()
    jobs = [
        VllmJob(VllmModel(model="base", adapter=f"adapter-{number}", rank=8), builder, deal_views(), [task])
        for number, task in enumerate([*tasks, long])
    ]
    asked: list[list[Request]] = []

    def complete(requests: list[Request]) -> list[Completion]:
        asked.append(requests)
        return [Completion(request.token_ids[-2:], -1.0, 3, False) for request in requests]

    found = list(predict_jobs(jobs, CONFIG, complete, done={(tasks[1].id, 0)}))
    # Tests are not divided: three of three prompts make a batch of seven or more.
    assert [len(requests) for requests in asked] == [9, 3]
    assert [request.adapter for request in asked[0]] == ["adapter-0"] * 6 + ["adapter-2"] * 3
    assert [(group[0].task_id, group[0].test_index, len(group)) for group in found] == [
        (tasks[0].id, 0, 3), (tasks[0].id, 1, 3), (tasks[2].id, 0, 3), (tasks[3].id, 0, 3), ("long", 0, 3),
    ]  # fmt: skip
    assert [prediction.error for prediction in found[-1]] == [TOO_LONG] * 3
    assert [prediction.num_tokens for group in found[:-1] for prediction in group] == [3] * 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a small model that is saved, without grid positions."""
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ARCHITECTURES / "qwen2"))
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data.mul_(8)
    model.save_pretrained(folder)
    return [
        f"model.path={folder}", "model.tokenizer=bundled:tiny", "model.init=pretrained", "model.positions=none",
        "model.train_modules=[]",
    ]  # fmt: skip


def test_a_fingerprint_needs_no_loaded_model(base: list[str]) -> None:
    for path, init in ((base[0].partition("=")[2], "pretrained"), ("bundled:tiny", "random")):
        config = ModelConfig(name="m", path=path, init=init)  # type: ignore[arg-type]
        model = load_model(config, dtype=torch.bfloat16, device=torch.device("cpu"))
        assert stored_fingerprint(config) == base_fingerprint(config, model)


@pytest.mark.slow
def test_an_evaluation_by_it_says_what_one_by_generate_says(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint and an adapter for one task, all in one engine, which dies once."""
    run = trained(tmp_path / "run", *base, "training.generation_tasks=0")
    trained(
        tmp_path / "adapted" / "0", *base, f"lora.start={run}", "data=leave_one_out", ids(SMALL_EVALUATION_TASKS[1]),
        "data.held_out=0", "training.learning_rate=0.05", "training.generation_tasks=0",
    )  # fmt: skip
    asked = [f"checkpoint={run}", f"adapters={tmp_path / 'adapted'}/*", *evaluation_tasks()]
    expected = answers(evaluated(tmp_path / "generate", *asked, "inference=generate"))
    monkeypatch.syspath_prepend(str(SUPPORT / "stand_in_vllm"))
    monkeypatch.setenv("STAND_IN_DIES", str(tmp_path / "died"))
    served = ["inference=vllm", "inference.batch_size=4"]
    folder = evaluated(tmp_path / "vllm", *asked, *served)
    found = answers(folder)
    assert [answer[:3] for answer in found] == [answer[:3] for answer in expected]
    assert [answer[3] for answer in found] == pytest.approx([answer[3] for answer in expected], abs=1e-3)
    assert len({answer[2] for answer in found}) > 2
    assert "the vLLM engine has died (exit code " in capsys.readouterr().out
    assert (tmp_path / "died").exists()
    # What is there is not asked again.
    seconds = [prediction.seconds for prediction in predicted(folder)]
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:5]), encoding="utf-8")
    (folder / "metrics.json").unlink()
    evaluated(folder, *asked, *served)
    assert [prediction.seconds for prediction in predicted(folder)][:4] == seconds[:4]
    assert answers(folder) == found
    # Another base model is refused, though nothing here loads it.
    weights = Path(base[0].partition("=")[2]) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="it is another model"):
        evaluated(tmp_path / "other", *asked, *served, "inference.seed=1")
    weights.write_bytes(content)
