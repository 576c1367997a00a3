"""The memory of a training run, before it starts and before its weights are loaded."""

from __future__ import annotations

import copy
import dataclasses
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
from arcft.memory import available_memory, used_memory
from arcft.models.base_model import base_model
from arcft.models.load import resolve_dtype
from arcft.models.outline import outline, stored_bytes
from arcft.models.packed_attention import packs, use_packed_attention
from arcft.models.quantization import num_parameters
from arcft.models.sharding import blocks
from arcft.protocols import Positions
from arcft.text.stream import ExampleStream
from arcft.text.tokens import Example
from arcft.training.batches import Grouping
from arcft.training.footprint import Footprint, footprint
from arcft.training.loss import summed_cross_entropy
from arcft.training.optimizers import state_bytes

logger = logging.getLogger(__name__)

SAMPLED = 256
"""Examples of the run that are made, beside those of its longest tasks."""

SAMPLED_LONGEST = 16
"""Examples of the longest tasks that are made."""

LATER_LIBRARIES = 40 * 2**20
"""Bytes of what a run on a CPU loads after its estimate: optimizers, kernels, W&B."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak of a run in each of its processes, by purpose, on the device where it trains."""

    libraries: int
    """On a CPU: the process itself, with libraries and data."""

    weights: int
    """With FSDP, this process's slice and what is gathered of the others'."""

    gradients: int
    optimizer: int
    activations: int

    kept: int = 0
    """On a CPU: what the C library keeps of freed memory beside all that."""

    loading: int
    """Peak while the weights are loaded, and of evaluations that gather them."""

    host: int = 0
    """CPU memory of the process while it loads the weights of a model that trains on a GPU, where that is much."""

    @property
    def training(self) -> int:
        """The peak of the steps."""
        return self.libraries + self.weights + self.gradients + self.optimizer + self.activations + self.kept

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.training, self.libraries + self.loading)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes that a run's model and passes take in a process that has all of it."""

    passes: Footprint
    optimizer: int
    parameters: int
    """Their number."""

    blocks: int
    """Weights of the largest transformer block."""

    outside: int
    """Weights outside of the blocks, such as embedding and head."""


class Estimator:
    """Estimates the memory of a run by its settings, from examples of its stream, the longest among them."""

    def __init__(
        self,
        config: TrainConfig,
        stream: ExampleStream,
        positions: Positions | None,
        kept: Sequence[int] | None,
        device: torch.device,
    ) -> None:
        """Make the examples; `kept` are the tokens of a pruned vocabulary."""
        self.config = config
        self.device = device
        self._positions = positions
        self._kept = kept
        self._stored = stored_bytes(config.model)
        number = min(len(stream), SAMPLED)
        indices = [k * len(stream) // number for k in range(number)]
        self._examples = [stream[k] for k in indices]
        self._long = [stream[k] for k in stream.longest(SAMPLED_LONGEST) if k not in set(indices)]
        self._found: dict[tuple[int, bool, bool], _Sizes] = {}

    def of(self, config: TrainConfig) -> Estimator:
        """This estimator for a config with another model, or another `fsdp`."""
        other = copy.copy(self)
        other.config = config
        other._found = self._found if config.model == self.config.model else {}
        return other

    @property
    def sampled(self) -> int:
        """Examples that were made."""
        return len(self._examples) + len(self._long)

    @property
    def longest(self) -> int:
        """Tokens of the longest of them."""
        return max(map(_tokens, [*self._examples, *self._long]))

    def memory(self, training: TrainingConfig) -> Memory | None:
        """The memory of each process of a run with `training`, which has no `auto` left. None if the model can't be
        built or run without weights."""
        accumulates = training.gradient_accumulation_steps > 1 or self.config.training.max_batch_tokens is not None
        key = (training.batch_size, bool(training.gradient_checkpointing), accumulates)
        try:
            if key not in self._found:
                self._found[key] = self._measure(*key)
            return self._memory(self._found[key])
        # Errors of libraries, of any kind; what is wrong with the config is reported when the model is loaded.
        except Exception as error:
            logger.debug("memory can't be estimated", exc_info=error)
            return None

    def _measure(self, rows: int, gradient_checkpointing: bool, accumulates: bool) -> _Sizes:
        model = outlined(self.config, self.device, self._kept)
        model.train()
        if gradient_checkpointing:
            base_model(model).gradient_checkpointing_enable({"use_reentrant": False})
        packing = self.config.training.packing and packs(model)
        if packing:
            use_packed_attention(model)
        grouping = Grouping(
            pad_id=0,
            positions=self._positions,
            max_batch_tokens=self.config.training.max_batch_tokens,
            packing=packing,
        )
        dtype = resolve_dtype(self.config.training.dtype, self.device)
        parameters, optimizer = num_parameters(model), state_bytes(model, self.config.optimizer)
        on_cpu = self.device.type == "cpu"
        passes = footprint(
            model,
            [grouping.collate(group) for group in self._passes(grouping, rows, several=on_cpu)],
            lambda model, batch: summed_cross_entropy(model, batch)[0],
            device=self.device,
            autocast=None if dtype == torch.float32 else dtype,
            keeps_gradients=accumulates,
            heap_limit=available_memory(self.device) - used_memory() if on_cpu else 0,
        )
        sizes = [sum(map(_nbytes, block.parameters())) for block in blocks(model)]
        return _Sizes(passes, optimizer, parameters, max(sizes, default=0), max(0, passes.weights - sum(sizes)))

    def _passes(self, grouping: Grouping, rows: int, *, several: bool) -> list[Sequence[Example]]:
        """The examples of forward passes of a run: the one with the most tokens and, where tokens are limited, the
        one with the longest example; with `several` also another before, because the C library keeps memory of it."""
        longest = max(self._long, key=_tokens, default=None)
        batches = [self._examples[start : start + rows] for start in range(0, len(self._examples), rows)]
        batches = [batch for batch in batches if len(batch) == rows] or batches
        if longest is not None:
            batches.append([longest, *self._examples[: rows - 1]])
        limited = grouping.max_batch_tokens is not None
        groups = [group for batch in batches for group in (grouping.groups(batch) if limited else [batch])]

        def size(group: Sequence[Example]) -> int:
            lengths = list(map(_tokens, group))
            return sum(lengths) if grouping.packing else len(lengths) * max(lengths)

        chosen = [groups[0]] if several else []
        chosen.append(max(groups, key=size))
        if limited:
            chosen.append(max(groups, key=lambda group: max(map(_tokens, group))))
        return [group for number, group in enumerate(chosen) if group not in chosen[:number]]

    def _memory(self, found: _Sizes) -> Memory:
        on_cpu = self.device.type == "cpu"
        passes = found.passes
        # torch.optim updates weights one by one on a CPU, all together on a GPU.
        updating = 2 * passes.largest if on_cpu else passes.gradients
        whole = Memory(
            libraries=used_memory() + LATER_LIBRARIES if on_cpu else 0,
            weights=passes.weights,
            gradients=passes.gradients,
            optimizer=found.optimizer,
            activations=max(passes.peak - passes.weights - passes.gradients, updating),
            kept=passes.kept,
            loading=self._loading(found) if on_cpu else passes.weights,
            host=0 if on_cpu or not self._loads_on_cpu() else used_memory() + self._loading(found),
        )
        return whole if self._shards() == 1 else self._sharded(whole, found)

    def _shards(self) -> int:
        return 1 if self.config.training.fsdp is None else ranks.launched()

    def _sharded(self, whole: Memory, found: _Sizes) -> Memory:
        """The share of a rank. See models/sharding.py for what is gathered, and when."""
        count = self._shards()
        weights = whole.weights // count
        # full_shard: the block that is computed, the next one, which is under way, and what is in no block.
        gathered = min(whole.weights, found.outside + 2 * found.blocks)
        if self.config.training.fsdp == "shard_grad_op":
            gathered = whole.weights
        # Evaluations gather all weights.
        evaluating = weights + whole.weights if self.config.data.held_out else 0
        trained_share = whole.gradients / max(1, whole.weights)
        return dataclasses.replace(
            whole,
            weights=weights + gathered,
            # Of the block whose gradients are being added up over ranks, all; of others, slices.
            gradients=int(whole.gradients / count + trained_share * min(whole.weights, found.outside + found.blocks)),
            optimizer=whole.optimizer // count,
            loading=max(whole.loading if self.device.type == "cpu" else weights, evaluating),
        )

    def _loads_on_cpu(self) -> bool:
        """Whether the whole model is in CPU memory before it goes to a GPU."""
        model = self.config.model
        gguf = str(model.path).endswith(".gguf")
        return self._shards() > 1 or model.init == "random" or (gguf and model.quantization != "none")

    def _loading(self, found: _Sizes) -> int:
        """Bytes of CPU memory at the peak of models/load.py."""
        model, weights = self.config.model, found.passes.weights
        dense = found.parameters * self._weight_dtype().itemsize
        quantised = model.quantization != "none"
        if model.init == "random":
            # Drawn in float32, whatever they become.
            return 4 * found.parameters + (weights if quantised else 0)
        if quantised and str(model.path).endswith(".gguf"):
            return dense + max(weights, self._stored)
        return weights + self._stored

    def _weight_dtype(self) -> torch.dtype:
        return _weight_dtype(self.config, self.device)


def outlined(
    config: TrainConfig, device: torch.device, kept: Sequence[int] | None = None
) -> PreTrainedModel | PeftModel:
    """The model of a run, without weights; `kept` are the tokens of a pruned vocabulary."""
    return outline(
        config.model,
        config.lora,
        dtype=_weight_dtype(config, device),
        device=device,
        autocast=resolve_dtype(config.training.dtype, device),
        vocabulary=None if kept is None else len(kept),
    )


def _weight_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Trained weights are float32; frozen ones have the dtype of the arithmetic."""
    return resolve_dtype(config.training.dtype, device) if isinstance(config.lora, LoraConfig) else torch.float32


def _tokens(example: Example) -> int:
    return len(example.input_ids)


def _nbytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()
