"""Estimate memory and work of a training run before it starts."""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers import PreTrainedModel

from arcft import ranks
from arcft.config.run import TrainConfig
from arcft.models.quantization import num_parameters

# Bytes of activations a layer keeps per token and hidden unit in 16 bits with fused attention: Korthikanti et al. 2022,
# "Reducing Activation Recomputation in Large Transformer Models", equation 2 without the attention term.
ACTIVATION_BYTES = 34
OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "adamw_8bit": 2, "paged_adamw_8bit": 2}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes by purpose, and the amount of work."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    trainable: int
    parameters: int
    examples: int
    max_tokens: int
    steps: int

    @property
    def total(self) -> int:
        """Peak bytes, without the overhead of allocator and libraries."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the table, as (name, value)."""
        share = self.trainable / max(1, self.parameters)
        return [
            ("parameters", f"{self.parameters / 1e6:.2f} M, {self.trainable / 1e6:.2f} M trained ({share:.1%})"),
            ("weights", _gib(self.weights)),
            ("gradients", _gib(self.gradients)),
            ("optimizer state", _gib(self.optimizer)),
            ("activations, about", _gib(self.activations)),
            ("memory, about", _gib(self.total)),
            ("steps", f"{self.steps:,}"),
            ("examples", f"{self.examples:,}"),
            ("tokens, at most", f"{self.max_tokens / 1e6:.1f} M"),
        ]


def estimate(model: PreTrainedModel | nn.Module, config: TrainConfig, hidden_size: int, num_layers: int) -> Estimate:
    """Estimate peak memory in bytes, and the work, of a run of `config` with the loaded `model`."""
    training = config.training
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    tokens = training.per_device_train_batch_size * training.max_seq_length
    if training.max_batch_tokens is not None:
        tokens = min(tokens, max(training.max_batch_tokens, training.max_seq_length))
    # With checkpointing only the layers' inputs are stored, in 16 bits, and one layer is recomputed at a time.
    layers = num_layers * 2 + ACTIVATION_BYTES if training.gradient_checkpointing else num_layers * ACTIVATION_BYTES
    width = 2 if training.dtype == "float32" or parameters[0].device.type == "cpu" else 1
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * ranks.count()
    examples = training.max_steps * batch
    return Estimate(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        gradients=trainable * 4,
        optimizer=trainable * OPTIMIZER_BYTES[config.optimizer.name],
        activations=tokens * hidden_size * layers * width,
        trainable=trainable,
        parameters=num_parameters(model),
        examples=examples,
        max_tokens=examples * training.max_seq_length,
        steps=training.max_steps,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
