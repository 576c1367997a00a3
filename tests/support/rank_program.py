"""What tests/training/test_ranks.py starts with torchrun: `rank_program.py FOLDER` trains several small runs as the
ranks of one program, and rank 0 writes what came out to FOLDER/results.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from arcft.errors import ArcftError
from arcft.models.sharding import gathered_weights, shard
from arcft.training import collectives
from arcft.training.stopping import StopRequest
from tests.support.small_training import CPU, EVALUATION, Run, adapted_model, optimizer_config, small_model, small_run

STEPS = 5
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"max_batch_tokens": 40},
    "clipped": {"max_grad_norm": 0.05},
    "muon": {"optimizer_config": optimizer_config("muon")},
    "full_shard": {"sharding": "full_shard", "max_batch_tokens": 40},
    "shard_grad_op": {"sharding": "shard_grad_op"},
    "whole model": {"sharding": "full_shard", "whole": True},
}
"""Changes of a small run by its name. All train in float64, so that sums in another order agree."""


def make_run(folder: Path, accumulation: int, *, whole: bool = False, **changes: Any) -> Run:
    """A run of 8 examples a step, in batches of two."""
    model = small_model() if whole else adapted_model(dropout=0.0)
    model = model.double()
    if changes.get("sharding") is not None:
        if collectives.count() > 1:
            shard(model, changes["sharding"], CPU)
        else:
            del changes["sharding"]
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-3,
        "save_steps": 3,
        "eval_steps": 3,
        "eval_dataset": EVALUATION,
    }
    return small_run(folder, model, **(settings | changes))


def train(folder: Path, accumulation: int, **changes: Any) -> dict[str, Any]:
    """Train and return weights and logs."""
    run = make_run(folder, accumulation, **changes)
    run.trainer.train()
    return outcome(run)


def outcome(run: Run) -> dict[str, Any]:
    model = run.trainer.trained_model
    with gathered_weights(model, run.trainer.sharding):
        weights = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    names = ("loss", "grad_norm", "tokens", "eval_loss")
    return {"weights": weights, **{name: run.logs.of(name) for name in names}}


def fails(folder: Path) -> dict[str, Any]:
    """What each rank raises where one of them fails."""

    def poison(model: Any) -> None:
        if collectives.rank() == 1:
            next(value for value in model.parameters() if value.requires_grad).data.fill_(float("nan"))

    found: dict[str, Any] = {}
    run = make_run(folder / "nan", 2, eval_dataset=None)
    poison_at(run, 2, poison)
    found["nan"] = error_of(run)
    run = make_run(folder / "predicting", 2, more_metrics=lambda model, step: collectives.together(broken)[0])
    found["predicting"] = error_of(run)
    run = make_run(folder / "data", 2)
    run.trainer.train_dataset = Broken()
    found["data"] = error_of(run)
    return {name: collectives.gathered(value) for name, value in found.items()}


def broken() -> dict[str, float]:
    if collectives.rank() == 1:
        raise ArcftError("the model of this rank is broken")
    return {"accuracy": 1.0}


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, k: int) -> Any:
        if k == 10:
            raise ArcftError("example 10 can't be made")
        return EVALUATION[k % 4]


def poison_at(run: Run, step: int, poison: Any) -> None:
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                poison(model)

    run.trainer.add_callback(Poison())


def error_of(run: Run) -> str:
    try:
        run.trainer.train()
    except ArcftError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def stopped(folder: Path) -> dict[str, Any]:
    """One rank is asked to stop in the middle of a run; then the run is resumed by both."""
    whole = train(folder / "dropout whole", 2, dropout_model=True)
    stop = StopRequest()
    run = make_run(folder / "dropout", 2, stop=stop, dropout_model=True)
    if collectives.rank() == 1:
        poison_at(run, 2, lambda model: stop.request("the test"))
    run.trainer.train()
    steps = collectives.gathered(run.trainer.state.global_step)
    run = make_run(folder / "dropout", 2, dropout_model=True)
    run.trainer.train(folder / "dropout" / "checkpoint-2")
    return {"whole": whole, "steps": steps, "resumed": outcome(run)}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo")
    results: dict[str, Any] = {name: train(folder / name, 2, **changes) for name, changes in RUNS.items()}
    if collectives.rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
