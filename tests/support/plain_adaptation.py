"""One task's adaptation as anyone would write it: PEFT's model, a loss over all logits, AdamW. And what it is tried
on: small models of the architectures in tests/support/architectures, and examples of many lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import peft
import torch
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers import PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models.load import load_model
from arcft.models.lora import apply_lora
from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example
from tests.support import paths
from tests.support.small_training import lora_config

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CPU = torch.device("cpu")
PAD = 0


def architecture(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random-weight model with a tied head, 448 tokens, two layers."""
    path = paths.ARCHITECTURES / name
    return load_model(ModelConfig(name=name, path=str(path), init="random"), dtype=dtype, device=CPU)


def adapted(
    base: PreTrainedModel, train_modules: Sequence[str] = (), *, fresh: bool = False, **changes: Any
) -> peft.PeftModel:
    """`base` with an adapter, trained weights in float32, or float64 on a float64 model. Unless `fresh`, every trained
    weight is moved, as if it had been trained before."""
    model = apply_lora(base, lora_config(**({"dropout": 0.0} | changes)), train_modules, seed=0)
    if base.dtype == torch.float64:
        model.double()
    if not fresh:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return model


def make_examples(count: int, seed: int, *, shortest: int = 6, longest: int = 24) -> list[Example]:
    """Random tokens, the second half or so supervised."""
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length = int(generator.integers(shortest, longest + 1))
        ids = generator.integers(1, 32, size=length).tolist()
        prompt = int(generator.integers(1, length - 2))
        examples.append(Example(ids, [IGNORED] * prompt + ids[prompt:], prompt))
    return examples


@dataclasses.dataclass
class PlainStep:
    loss: float
    gradient_norm: float
    gradients: dict[str, torch.Tensor]
    """Before clipping, by the names that PEFT saves the weights under."""


def adapt_alone(
    model: peft.PeftModel,
    batches: Sequence[Sequence[Example]],
    *,
    learning_rate: float,
    factor: Callable[[int], float],
    max_grad_norm: float,
    positions: Positions | None = None,
) -> Iterator[PlainStep]:
    """Train `model` on one batch a step, an example after the other, so that nothing is padded."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.eval()
    for step, batch in enumerate(batches):
        count = sum(label != IGNORED for example in batch for label in example.labels)
        optimizer.zero_grad()
        loss = 0.0
        for example in batch:
            labels = torch.tensor([example.labels])
            inputs = {"input_ids": torch.tensor([example.input_ids])}
            if positions is not None:
                inputs["position_ids"] = torch.tensor([positions(example.input_ids)])
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            logits = model(**inputs).logits
            logits = logits if logits.dtype == torch.float64 else logits.float()
            share = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=IGNORED
            )
            share = share / count
            share.backward()
            loss += share.item()
        gradients = {name: gradient.clone() for name, gradient in _gradients(model).items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor(step)
        optimizer.step()
        yield PlainStep(loss, norm.item(), gradients)


def adapter_state(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _gradients(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    """Gradients by PEFT's names: the state dict shares its memory with the parameters, by which they are found."""
    by_memory = {parameter.data_ptr(): parameter for parameter in model.parameters() if parameter.requires_grad}
    return {name: by_memory[weight.data_ptr()].grad for name, weight in adapter_state(model).items()}  # type: ignore[misc]
