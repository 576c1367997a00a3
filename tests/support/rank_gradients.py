"""What tests/models/test_models_page.py starts with torchrun: two ranks that take a step with a model of each
architecture.

`rank_gradients.py FILE NAME...`: rank 0 writes for each name whether gradients and loss are those of one process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from arcft.models.lora import apply_lora
from arcft.text.tokens import IGNORED
from arcft.training import collectives
from arcft.training.loss import summed_cross_entropy
from tests.support.model_table import LORA, YES, random_tokens, small_model

EXAMPLES = [random_tokens(seed, length) for seed, length in ((11, 40), (12, 25), (13, 33), (14, 18))]
PROMPT = 10
"""Tokens of each example that are not supervised."""

TOLERANCE = 1e-3
"""The largest relative error of a gradient, in float32: sums have another order, and rows other lengths."""


def batch_of(examples: Any) -> dict[str, torch.Tensor]:
    """Examples side by side, padded on the right, as the trainer has them."""
    width = max(map(len, examples))
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example)
        mask[row, : len(example)] = 1
        labels[row, PROMPT : len(example)] = ids[row, PROMPT : len(example)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def same_step(name: str) -> str:
    """Compare the step of all ranks, each with its share of the examples, with that of one process with all of them.
    Every weight is trained, beside an adapter, so that no gradient is left out."""
    model = apply_lora(small_model(name), dataclasses.replace(LORA, init_lora_weights=False), [], seed=0)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    own = collectives.together(lambda: share_of_step(model, collectives.deal(EXAMPLES)))[collectives.rank()]
    (loss,) = collectives.add_up([own.item()], model.parameters())
    found = {key: one.grad for key, one in model.named_parameters()}
    model.zero_grad()
    expected = collectives.together(lambda: share_of_step(model, EXAMPLES))[collectives.rank()]
    if abs(loss - expected.item()) > 1e-5 * abs(expected.item()):
        return "no: other loss"
    for key, parameter in model.named_parameters():
        gradient, reference = found[key], parameter.grad
        assert (gradient is None) == (reference is None), key
        if reference is not None and (gradient - reference).norm() > TOLERANCE * reference.norm() + 1e-7:
            return "no: other gradients"
    return YES


def share_of_step(model: Any, examples: Any) -> torch.Tensor:
    """The part of the step's loss that is these examples', after its backward pass."""
    total = sum(len(example) - PROMPT for example in EXAMPLES)
    loss = summed_cross_entropy(model, batch_of(examples))[0] / total
    loss.backward()
    return loss.detach().double()


def main(file: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    dist.init_process_group("cpu:gloo")
    cells = {name: same_step(name) for name in names}
    if collectives.rank() == 0:
        file.write_text(json.dumps(cells), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
