"""What a step does when memory runs out in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from arcft.memory import OutOfMemoryError
from arcft.models.sharding import Strategy
from arcft.training.arguments import make_training_arguments
from arcft.training.batches import Batch, Group, Grouping, rows_of
from arcft.training.passes import Passes
from tests.support.small_training import CPU, PAD, CopyStream, adapted_model, training_config

GROUPING = Grouping(pad_id=PAD)
EIGHT, ONE = GROUPING([CopyStream()[k] for k in range(8)]), GROUPING([CopyStream()[8]])


def make_passes(folder: Path, batches: Sequence[Batch], said: list[str], sharding: Strategy | None = None) -> Passes:
    arguments = make_training_arguments(training_config(), folder, CPU)
    passes = Passes(adapted_model(), GROUPING, arguments, sharding, said.append)
    passes.begin(batches)
    return passes


def failing_at(calls: Sequence[int], seen: list[tuple[int, float]]) -> Callable[[Group], torch.Tensor]:
    """A pass that runs out of memory at these calls; `seen` gets rows and a random number of each call."""

    def one_pass(group: Group) -> torch.Tensor:
        seen.append((rows_of(group), torch.rand(()).item()))
        if len(seen) in calls:
            raise MemoryError("full")
        return torch.tensor(float(rows_of(group)))

    return one_pass


def test_the_batch_that_failed_is_halved_also_while_the_step_is_repeated(tmp_path: Path) -> None:
    said: list[str] = []
    seen: list[tuple[int, float]] = []
    passes = make_passes(tmp_path, [EIGHT, ONE], said)
    # The second batch fails, and then the first while it is repeated.
    one_pass = failing_at([2, 3], seen)
    assert passes.loss(EIGHT, 5, one_pass) == 8
    assert passes.loss(ONE, 5, one_pass) == 1
    assert [rows for rows, _ in seen] == [8, 1, 8, 4, 4, 1]
    assert (passes.max_rows, passes.gradient_checkpointing) == (4, True)
    repeated = "out of memory in step 5; the step is repeated, and the run goes on, with "
    assert said == [
        f"{repeated}training.gradient_checkpointing=true",
        f"{repeated}at most 4 examples per forward pass (was 8)",
    ]
    with pytest.raises(OutOfMemoryError, match="step 6 does not fit into memory, with one example"):
        passes.loss(ONE, 6, failing_at([1], []))


def test_a_repeated_step_begins_with_the_random_state_of_its_first_pass(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    passes = make_passes(tmp_path, [EIGHT, ONE], [])
    # As transformers does when it has fetched the first batches of a resumed run.
    torch.manual_seed(3)
    one_pass = failing_at([2], seen)
    passes.loss(EIGHT, 1, one_pass)
    passes.loss(ONE, 1, one_pass)
    torch.manual_seed(3)
    assert seen[0][1] == seen[2][1] == torch.rand(()).item()


def test_a_sharded_model_says_what_helps(tmp_path: Path) -> None:
    passes = make_passes(tmp_path, [EIGHT], [], "full_shard")
    with pytest.raises(
        OutOfMemoryError,
        match=r"^step 2 does not fit into memory with training\.fsdp=full_shard \(full\); use "
        r"training\.gradient_checkpointing=true or a lower training\.per_device_train_batch_size or more processes$",
    ):
        passes.loss(EIGHT, 2, failing_at([1], []))
