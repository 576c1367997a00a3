"""Training under real limits on memory, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

CHILD = '''
import json, resource, sys
from pathlib import Path
import psutil, torch
torch.set_num_threads(1)
from transformers import TrainerCallback
from arcft.memory import OutOfMemoryError
from arcft.text.tokens import IGNORED, Example
from arcft.models.lora import apply_lora
from tests.support.small_training import CopyStream, lora_config, small_model, small_run

HARD = resource.getrlimit(resource.RLIMIT_AS)[1]

def limit(megabytes):
    """Leave so much address space, or as much as there is."""
    left = HARD if megabytes is None else psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (left, HARD))

class LongStream(CopyStream):
    def __getitem__(self, k):
        one = super().__getitem__(k)
        ids = (one.input_ids * 400)[:400 + k % 7]
        return Example(ids, [IGNORED] * 300 + ids[300:], 300)

def run(name, **changes):
    """About 30 MiB for each example of a forward pass."""
    model = apply_lora(small_model(hidden_size=64, intermediate_size=2048, max_position_embeddings=512),
                       lora_config(dropout=changes.pop("dropout", 0.0)), [], seed=0)
    one = small_run(Path(sys.argv[1]) / name, model, save_steps=1, **{"max_steps": 3} | changes)
    one.trainer.train_dataset = LongStream()
    return one

def losses(one):
    return one.logs.of("loss")

class LimitAfter(TrainerCallback):
    def __init__(self, step, megabytes):
        self.step, self.megabytes = step, megabytes
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            limit(self.megabytes)

'''

HALVED = """
run("warm", max_steps=1, per_device_train_batch_size=1).trainer.train()
RESULT = {}
accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
for name, changes in {"padded": {}, "accumulated": accumulated}.items():
    limit(110)
    small = run(name, **changes)
    small.trainer.train()
    limit(None)
    large = run(name + "_whole", **changes)
    large.trainer.train()
    RESULT[name] = {"losses": losses(small), "expected": losses(large), "rows": small.logs.of("examples_per_pass"),
                    "norms": small.logs.of("grad_norm"), "expected_norms": large.logs.of("grad_norm")}
print(json.dumps(RESULT))
"""

ON_ONE_RANK = """
import torch.distributed as dist
from arcft.training.loss import summed_cross_entropy
dist.init_process_group("cpu:gloo")
FIRST = dist.get_rank() == 0
EIGHT = [LongStream()[k] for k in range(9000, 9008)]

def train(name, megabytes, **changes):
    if not FIRST:
        limit(megabytes)
    one = run(name, max_steps=2, eval_dataset=[*EIGHT, *EIGHT], eval_steps=2, **changes)
    one.trainer.train()
    return one

def runs_out(one):
    try:
        with torch.no_grad():
            summed_cross_entropy(one.trainer.trained_model, one.trainer.data_collator.collate(EIGHT))
        return False
    except RuntimeError:
        return True

whole = train("whole", None)
low = [] if FIRST else [LimitAfter(2, 30)]
small = train("small", 110, callbacks=low)
ran_out = [None, None]
dist.all_gather_object(ran_out, runs_out(small))
if FIRST:
    print(json.dumps({"ran_out": ran_out, "rows": small.logs.of("examples_per_pass"),
                      **{name: [small.logs.of(name), whole.logs.of(name)] for name in ("loss", "eval_loss")}}))
"""

LAST_RUNG = """
whole = run("whole")
whole.trainer.train()
stopped = run("stopped", callbacks=[LimitAfter(2, 4)])
try:
    stopped.trainer.train()
    message = ""
except OutOfMemoryError as error:
    message = str(error)
limit(None)
resumed = run("stopped")
resumed.trainer.train(Path(sys.argv[1]) / "stopped" / "checkpoint-2")
print(json.dumps({"message": message, "losses": losses(stopped) + losses(resumed), "expected": losses(whole),
                  "kept": sorted(path.name for path in (Path(sys.argv[1]) / "stopped").glob("checkpoint-*"))}))
"""


def run_child(folder: Path, script: str, *, ranks: int = 1) -> tuple[dict[str, Any], str]:
    """What the script prints last, as data, and all that it prints."""
    program = folder / "program.py"
    program.write_text(CHILD + script)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(program), str(folder)],
        cwd=ROOT,
        # Without a limit on the threshold, glibc would serve from what it has kept.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_starts_over_in_smaller_passes_with_the_same_result(tmp_path: Path) -> None:
    results, said = run_child(tmp_path, HALVED)
    for result in results.values():
        assert result["rows"]  # memory did run out
        assert result["losses"] == pytest.approx(result["expected"], rel=1e-5)
        assert result["norms"] == pytest.approx(result["expected_norms"], rel=1e-4)
    assert "warning: out of memory in step 1; the step is repeated, and the run goes on, with at most 4 example" in said


@pytest.mark.slow
def test_on_the_last_rung_the_error_names_the_keys_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    result, said = run_child(tmp_path, LAST_RUNG)
    assert "at most 1 example per forward pass (was 2)" in said
    assert "and the run goes on, with training.gradient_checkpointing=true" in said
    for key in ("step 3", "training.max_seq_length", "model.quantization=nf4"):
        assert key in result["message"]
    assert result["losses"] == pytest.approx(result["expected"], rel=1e-5)
    assert "checkpoint-3" in result["kept"]


@pytest.mark.slow
def test_one_of_two_ranks_may_run_out_of_memory_in_a_step_and_in_an_evaluation(tmp_path: Path) -> None:
    result, said = run_child(tmp_path, ON_ONE_RANK, ranks=2)
    assert result["ran_out"] == [False, True]
    assert "warning: rank 1: out of memory in step 1; the step is repeated" in said
    assert result["rows"]
    assert set(result["rows"]) <= {1.0, 2.0, 4.0}
    for name, steps in (("loss", 2), ("eval_loss", 1)):
        found, expected = result[name]
        assert len(found) == steps
        assert found == pytest.approx(expected, rel=1e-5)
