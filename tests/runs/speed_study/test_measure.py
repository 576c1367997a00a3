"""Measuring in this process: exact lengths, the time to the first token, and both decoders."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.decoding.probe import decoder_for
from arcft.memory import peak_bytes, reset_peak
from arcft.models.families import Decoder
from arcft.models.load import load_model
from arcft.runs.speed_study import measure as measuring
from arcft.runs.speed_study.measure import complete, measure, random_prompts
from tests.support.families import family_model
from tests.support.speed_rows import setting

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model(ModelConfig(name="tiny", path="bundled:tiny"), dtype=torch.float32, device=CPU)


def written(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of all completions from now on."""
    lengths: list[list[int]] = []
    decode = measuring.decode

    def recorded(*args: Any, **options: Any) -> Any:
        completions = decode(*args, **options)
        lengths.append([len(one.token_ids) for one in completions])
        return completions

    monkeypatch.setattr(measuring, "decode", recorded)
    return lengths


def test_each_answer_has_the_asked_length(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = written(monkeypatch)
    measured = list(measure(tiny, setting(batch=3, input=20, output=7), None, repeats=2, max_seconds=60))
    assert lengths == [[4] * 3, [7] * 3, [7] * 3]  # the first is the warm-up
    lengths.clear()
    list(measure(tiny, setting(batch=3, input=20, output=7), None, repeats=1, max_seconds=60, is_warm=True))
    assert lengths == [[7] * 3]
    assert len(measured) == 2
    assert all(0 < run.first_token_seconds < run.seconds for run, _ in measured)
    assert 10**8 < measured[0][1] <= measured[1][1] < 10**11


def test_one_run_is_made_however_little_time_there_is(tiny: Any) -> None:
    assert len(list(measure(tiny, setting(input=20, output=7), None, repeats=5, max_seconds=1e-9))) == 1


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
@pytest.mark.parametrize("size", [1, 12])
def test_the_first_token_is_chosen_after_the_prompts_are_read(
    family: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass takes 20 ms: the first token costs one, each further token another one."""
    model = family_model(family)
    assert decoder_for(model) is (Decoder.OWN if family == "llama" else Decoder.GENERATE)
    prompts = random_prompts(setting(batch=2, input=size), 200)
    handle = model.register_forward_hook(lambda module, args, output: time.sleep(0.02))
    run = complete(model, prompts, 6, None)
    one = complete(model, prompts, 1, None)
    handle.remove()
    assert run.first_token_seconds >= 0.02
    assert run.seconds - run.first_token_seconds >= 5 * 0.02
    assert one.first_token_seconds == one.seconds
    # Slower than a pass, on a busy machine too, but never as slow as all of them together.
    assert run.first_token_seconds < run.seconds - 4 * 0.02


def test_processor_time_leaves_waiting_out(tiny: Any) -> None:
    handle = tiny.register_forward_hook(lambda module, args, output: time.sleep(0.1))
    prompts = random_prompts(setting(input=8), 448)
    run = complete(tiny, prompts, 6, None, time.process_time)
    handle.remove()
    assert 0 < run.first_token_seconds < run.seconds < 0.6


def test_prompts_are_the_same_each_time() -> None:
    prompts = random_prompts(setting(batch=2, input=50), 448)
    assert prompts == random_prompts(setting(batch=2, input=50), 448)
    assert prompts[0] != prompts[1]
    assert {len(prompt) for prompt in prompts} == {50}
    assert min(min(prompt) for prompt in prompts) >= 100
    assert max(max(prompt) for prompt in random_prompts(setting(batch=4, input=500), 10)) <= 9


def test_the_peak_is_of_the_setting_alone() -> None:
    reset_peak(CPU)
    before = peak_bytes(CPU)
    block = torch.ones(2**26)  # 256 MiB
    assert peak_bytes(CPU) - before > 200 * 2**20
    del block
    reset_peak(CPU)
    assert peak_bytes(CPU) - before < 100 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_peak_is_what_torch_allocated_there() -> None:
    device = torch.device("cuda")
    model = load_model(ModelConfig(name="tiny", path="bundled:tiny"), dtype=torch.bfloat16, device=device)
    small = list(measure(model, setting(batch=1, input=64, output=8), None, repeats=2, max_seconds=60))
    large = list(measure(model, setting(batch=32, input=1024, output=8), None, repeats=2, max_seconds=60))
    assert all(0 < run.first_token_seconds < run.seconds for run, _ in [*small, *large])
    # Keys and values alone: 5 layers, 160 wide, 2 bytes.
    assert large[-1][1] - small[-1][1] > 32 * 1024 * 5 * 160 * 2 * 2 * 0.9
