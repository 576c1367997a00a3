"""The memory and the work of a training run, before it starts and before its weights are loaded."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from arcft import ranks
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.config.training import TrainingConfig
from arcft.memory import gib, used_memory
from arcft.models.base_model import base_model
from arcft.models.load import resolve_dtype
from arcft.models.lora import trainable_parameters
from arcft.models.outline import outline, stored_bytes
from arcft.models.packed_attention import packs, use_packed_attention
from arcft.models.quantization import num_parameters
from arcft.protocols import Positions
from arcft.text.stream import ExampleStream
from arcft.training.batches import collate, pack
from arcft.training.footprint import Footprint, footprint
from arcft.training.loss import summed_cross_entropy

logger = logging.getLogger(__name__)

SAMPLED = 256
"""Examples of the run that are made to find the longest."""

LATER_LIBRARIES = 40 * 2**20
"""Bytes of what a run on a CPU loads after its estimate: optimizers, kernels, W&B."""

OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Of state per trained weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak of a run, by purpose."""

    libraries: int
    """On a CPU: the process itself, with libraries and data."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loading: int
    """While the weights are loaded, for all of it."""

    @property
    def total(self) -> int:
        """The peak."""
        training = self.weights + self.gradients + self.optimizer + self.activations
        return self.libraries + max(self.loading, training)

    def rows(self) -> list[tuple[str, str]]:
        """Rows of a table, as (name, value)."""
        names = ("libraries", "weights", "gradients", "optimizer state", "activations")
        sizes = (self.libraries, self.weights, self.gradients, self.optimizer, self.activations)
        return [
            *((name, gib(size)) for name, size in zip(names, sizes, strict=True) if size),
            ("memory, about", gib(self.total)),
        ]


class Estimator:
    """Estimates the memory of a run by its settings; its longest examples are those of a sample of its stream."""

    def __init__(
        self,
        config: TrainConfig,
        stream: ExampleStream,
        positions: Positions | None,
        kept: Sequence[int] | None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self._positions = positions
        self._kept = kept
        self._stored = stored_bytes(config.model)
        indices = range(0, len(stream), max(1, len(stream) // SAMPLED))
        self.examples = sorted((stream[k] for k in indices), key=lambda example: len(example.input_ids), reverse=True)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return len(self.examples[0].input_ids)

    def memory(self, training: TrainingConfig) -> Memory | None:
        """The memory of a run with `training`, which has no `auto` left, if its forward passes hold as many of the
        longest examples as they may. None if the model can't be built or run without weights."""
        rows = self._rows_of_pass(training.batch_size)
        checkpointing, accumulates = bool(training.gradient_checkpointing), training.gradient_accumulation_steps > 1
        try:
            if rows <= 2:
                return self._memory(self._footprint(rows, checkpointing, accumulates))
            # Activations grow by the same for each row.
            one, two = (self._footprint(count, checkpointing, accumulates) for count in (1, 2))
        # Errors of libraries, of any kind; what is wrong with the config is reported when the model is loaded.
        except Exception as error:
            logger.debug("memory can't be estimated", exc_info=error)
            return None
        return self._memory(dataclasses.replace(one, peak=one.peak + (rows - 1) * (two.peak - one.peak)))

    def _rows_of_pass(self, rows: int) -> int:
        limit = self.config.training.max_batch_tokens
        return rows if limit is None else min(rows, max(1, limit // self.longest))

    @functools.cache  # noqa: B019
    def _footprint(self, rows: int, gradient_checkpointing: bool, accumulates: bool) -> Footprint:
        model = outlined(self.config, self.device, self._kept)
        model.train()
        if gradient_checkpointing:
            base_model(model).gradient_checkpointing_enable({"use_reentrant": False})
        dtype = resolve_dtype(self.config.training.dtype, self.device)
        examples = [self.examples[k % len(self.examples)] for k in range(rows)]
        if self.config.training.packing and packs(model):
            use_packed_attention(model)
            batch = pack(examples, self._positions)
        else:
            batch = collate(examples, pad_id=0, positions=self._positions)
        return footprint(
            model,
            [batch],
            lambda model, batch: summed_cross_entropy(model, batch)[0],
            device=self.device,
            autocast=None if dtype == torch.float32 else dtype,
            keeps_gradients=accumulates,
        )

    def _memory(self, found: Footprint) -> Memory:
        on_cpu = self.device.type == "cpu"
        optimizer = found.gradients // 4 * OPTIMIZER_BYTES[self.config.optimizer.name]
        # torch.optim updates weights one by one on a CPU, all together on a GPU.
        updating = 2 * found.largest if on_cpu else found.gradients
        passes = found.peak - found.weights - found.gradients
        return Memory(
            libraries=used_memory() + LATER_LIBRARIES if on_cpu else 0,
            weights=found.weights,
            gradients=found.gradients,
            optimizer=optimizer,
            activations=max(passes, updating),
            loading=self._loading(found.weights),
        )

    def _loading(self, weights: int) -> int:
        if self.config.model.init == "random":
            # Drawn in float32, whatever they become.
            dtype = resolve_dtype(self.config.training.dtype, self.device)
            return weights * 4 // dtype.itemsize if isinstance(self.config.lora, LoraConfig) else weights
        return weights + self._stored


def outlined(
    config: TrainConfig, device: torch.device, kept: Sequence[int] | None = None
) -> PreTrainedModel | PeftModel:
    """The model of a run, without weights; `kept` are the tokens of a pruned vocabulary."""
    arithmetic = resolve_dtype(config.training.dtype, device)
    return outline(
        config.model,
        config.lora,
        dtype=arithmetic if isinstance(config.lora, LoraConfig) else torch.float32,
        device=device,
        autocast=arithmetic,
        vocabulary=None if kept is None else len(kept),
    )


def work(config: TrainConfig, model: nn.Module) -> list[tuple[str, str]]:
    """The size of a run's model and its amount of work, as rows of a table."""
    training = config.training
    total = num_parameters(model)
    trained = trainable_parameters(model)
    examples = training.max_steps * training.batch_size * training.gradient_accumulation_steps * ranks.launched()
    return [
        ("parameters", f"{total / 1e6:.2f} M, {trained / 1e6:.2f} M trained ({trained / max(1, total):.1%})"),
        ("steps", f"{training.max_steps:,}"),
        ("examples", f"{examples:,}"),
        ("tokens, at most", f"{examples * training.max_seq_length / 1e6:.1f} M"),
    ]
