"""Several ranks train as one process does: the same examples in each step, the same steps, one end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, SequentialSampler

from arcft.checkpoints import last_checkpoint, read_checkpoint
from arcft.training.batches import Batch, add_idle_passes, step_share
from arcft.training.collectives import undeal
from tests.support.paths import ROOT
from tests.support.rank_program import RUNS, STEPS, small_run, trained


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_equal_effective_batches_take_the_same_examples_in_each_step(ranks: int, accumulation: int) -> None:
    batch, steps = 2, 5
    length = batch * 12 * steps
    dealt: list[list[list[int]]] = []
    for rank in range(ranks):
        loader = DataLoader(range(length), batch_size=batch, sampler=SequentialSampler(range(length)))  # type: ignore[arg-type]
        loader = prepare_data_loader(loader, num_processes=ranks, process_index=rank, put_on_device=False)
        dealt.append([rows.tolist() for rows in loader])
        assert len(dealt[-1]) == steps * accumulation
    for step in range(steps):
        taken = [k for own in dealt for rows in own[step * accumulation :][:accumulation] for k in rows]
        assert sorted(taken) == list(range(step * 24, (step + 1) * 24))


def test_results_of_shares_come_back_in_order() -> None:
    assert undeal([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7))
    assert undeal([[0], [], []]) == [0]


def test_ranks_with_fewer_passes_get_idle_ones_without_a_label() -> None:
    group = {"input_ids": torch.ones(3, 4, dtype=torch.int64), "labels": torch.ones(3, 4, dtype=torch.int64)}
    batches = [Batch(groups=[dict(group)], tokens=12), Batch(groups=[dict(group), dict(group)], tokens=24)]
    add_idle_passes(batches, [[1, 2], [3, 1]])
    assert [len(batch["groups"]) for batch in batches] == [3, 2]
    assert step_share(batches).supervised == 36
    assert batches[0]["groups"][2]["input_ids"].shape == (1, 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What tests/support/rank_program.py computes on two ranks, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("ranks")
    program = ROOT / "tests" / "support" / "rank_program.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(program), str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt", weights_only=False), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_are_one_process_with_twice_the_accumulation(
    name: str, results: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    two, folder = results[0][name], results[1]
    one = trained(tmp_path, 4, **RUNS[name])
    assert one["weights"].keys() == two["weights"].keys()
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, rtol=0, atol=1e-10)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-9)
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-12)
    assert len(two["eval_loss"]) == 2
    assert two["tokens"] == one["tokens"]
    ours, theirs = folder / name / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}"
    files = set(read_checkpoint(theirs).manifest["files"]) - {"rng_state.pth"}
    assert set(read_checkpoint(ours).manifest["files"]) == files | {"rng_state_0.pth", "rng_state_1.pth"}
    states = [tree_flatten(torch.load(path / "optimizer.pt", weights_only=True)) for path in (ours, theirs)]
    assert states[0][1] == states[1][1]
    for mine, other in zip(states[0][0], states[1][0], strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)
        else:
            assert mine == other
    weights = "model.safetensors" if RUNS[name].get("whole") else "adapter_model.safetensors"
    assert load_file(ours / weights).keys() == load_file(theirs / weights).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "full_shard", "whole model"])
def test_one_process_resumes_what_two_ranks_began(
    name: str, results: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    run = small_run(tmp_path, 4, **RUNS[name])
    run.trainer.train(results[1] / name / "checkpoint-3")
    assert len(run.logs.of("loss")) == STEPS - 3
    for key, weight in results[0][name]["weights"].items():
        torch.testing.assert_close(
            dict(run.trainer.trained_model.named_parameters())[key].data, weight, rtol=0, atol=1e-10
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stopped", "stopped, sharded"])
def test_ranks_stop_together_and_resume_to_the_bit(name: str, results: tuple[dict[str, Any], Path]) -> None:
    found = results[0][name]
    assert found["steps"] == [(4, "it"), (4, "it")]
    for key, weight in found["whole"]["weights"].items():
        assert torch.equal(found["resumed"]["weights"][key], weight), key
    assert found["resumed"]["loss"] == found["whole"]["loss"][4:]


@pytest.mark.slow
def test_ranks_fail_together(results: tuple[dict[str, Any], Path]) -> None:
    failures, folder = results[0]["failures"], results[1]
    assert failures["nan"][0] == failures["nan"][1]
    assert failures["nan"][0][0].startswith("NonFiniteError: step 3: the loss is nan")
    assert failures["predicting"] == [
        ("RankError: rank 1: ArcftError: the model is broken", 3),
        ("ArcftError: the model is broken", 3),
    ]
    # The weights that could not be evaluated are saved, once.
    assert last_checkpoint(folder / "predicting").name == "checkpoint-3"
    # accelerate reads a batch ahead.
    assert failures["data"] == [
        ("RankError: rank 1: ArcftError: example 10 can't be made", 0),
        ("ArcftError: example 10 can't be made", 0),
    ]
