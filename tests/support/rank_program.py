"""What tests/training/test_ranks.py starts with torchrun: two ranks that train several small runs.

`rank_program.py FOLDER`: rank 0 writes what came out to FOLDER/results.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import TrainerCallback

from arcft.checkpoints import last_checkpoint
from arcft.errors import ArcftError
from arcft.models.sharding import gathered_weights, shard
from arcft.text.tokens import Example
from arcft.training import collectives
from arcft.training.chunked_loss import probe
from arcft.training.stopping import StopRequest
from tests.support.small_training import CPU, EVALUATION, CopyStream, Run, adapted_model, optimizer_config, small_model
from tests.support.small_training import small_run as make_small_run

STEPS = 5
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"max_batch_tokens": 40},
    "clipped muon": {"max_grad_norm": 0.05, "optimizer_config": optimizer_config("muon")},
    "full_shard": {"sharding": "full_shard", "max_batch_tokens": 40},
    "shard_grad_op": {"sharding": "shard_grad_op", "packing": True},
    "whole model": {"sharding": "full_shard", "whole": True},
}
"""Changes of a run by its name. All train in float64, so that sums in another order agree."""


def small_run(folder: Path, accumulation: int, *, whole: bool = False, dropout: float = 0.0, **changes: Any) -> Run:
    """A run whose steps take two examples a batch; `sharding` has no effect in a single process."""
    model = (small_model() if whole else adapted_model(dropout=dropout)).double()
    sharding = changes.pop("sharding", None) if collectives.count() > 1 else changes.pop("sharding", None) and None
    if sharding is not None:
        probe(model)
        shard(model, sharding, CPU)
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-3,
        "save_steps": 3,
        "eval_steps": 3,
        "eval_dataset": EVALUATION,
    }
    return make_small_run(folder, model, **(settings | changes), sharding=sharding)


def outcome(run: Run) -> dict[str, Any]:
    """Whole weights and logs."""
    model = run.trainer.trained_model
    with gathered_weights(model, run.trainer.sharding):
        weights = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    return {"weights": weights, **{name: run.logs.of(name) for name in ("loss", "grad_norm", "tokens", "eval_loss")}}


def trained(folder: Path, accumulation: int, **changes: Any) -> dict[str, Any]:
    run = small_run(folder, accumulation, **changes)
    run.trainer.train()
    return outcome(run)


class Before(TrainerCallback):
    """Does something to the model on rank 1 before a step."""

    def __init__(self, step: int, action: Callable[[Any], None]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step - 1 and collectives.rank() == 1:
            self.action(model)


class Broken(Dataset):
    """Has no example 10, which is rank 1's."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, k: int) -> Example:
        if k == 10:
            raise ArcftError("example 10 can't be made")
        return CopyStream()[k]


def poison(model: Any) -> None:
    next(value for value in model.parameters() if value.requires_grad).data.fill_(float("nan"))


def broken_on_one_rank(model: Any, step: int) -> dict[str, float]:
    def predict() -> None:
        if collectives.rank() == 1:
            raise ArcftError("the model is broken")

    collectives.together(predict)
    return {}


def failures(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """For each cause the error of each rank, and the step at which it came."""

    def failed(run: Run) -> list[tuple[str, int]]:
        words = "none"
        try:
            run.trainer.train()
        except ArcftError as error:
            words = f"{type(error).__name__}: {error}"
        return collectives.gathered((words, run.trainer.state.global_step))

    data = small_run(folder / "data", 2)
    data.trainer.train_dataset = Broken()
    return {
        "nan": failed(small_run(folder / "nan", 2, callbacks=[Before(3, poison)])),
        "predicting": failed(small_run(folder / "predicting", 2, more_metrics=broken_on_one_rank)),
        "data": failed(data),
    }


def stopped(folder: Path, **changes: Any) -> dict[str, Any]:
    """With dropout: a run that goes through, and one that rank 1 is asked to stop and that is then resumed."""
    changes |= {"dropout": 0.2}
    whole = trained(folder / "whole", 2, **changes)
    stop = StopRequest()
    first = small_run(
        folder / "parts", 2, **changes, stop=stop, callbacks=[Before(4, lambda model: stop.request("it"))]
    )
    first.trainer.train()
    second = small_run(folder / "parts", 2, **changes)
    second.trainer.train(collectives.from_first(last_checkpoint(folder / "parts")))
    steps = collectives.gathered((first.trainer.state.global_step, first.trainer.stop.reason))
    return {"whole": whole, "steps": steps, "resumed": outcome(second)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo")
    results: dict[str, Any] = {name: trained(folder / name, 2, **changes) for name, changes in RUNS.items()}
    results["stopped"] = stopped(folder / "stopped")
    results["stopped, sharded"] = stopped(folder / "sharded", sharding="full_shard")
    results["failures"] = failures(folder)
    if collectives.rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
