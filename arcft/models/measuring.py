"""What measurements of loaded models share: random texts, and how far two sets of logits are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

_LARGEST_WINDOW = 4096
_TOLERANCE, _TOLERANCE_IN_HALF = 0.01, 0.1


def tolerance_of(dtype: torch.dtype) -> float:
    """The largest `relative_error` that rounding explains. In 16 bits, rounding alone reaches a few hundredths, and a
    wrong mask or position exceeds a tenth."""
    return _TOLERANCE if dtype in (torch.float32, torch.float64) else _TOLERANCE_IN_HALF


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The median over places of the error relative to the spread over the vocabulary; both are [places, vocabulary].

    The median, because in a mixture of experts a rounding error may send a token elsewhere.
    """
    found, expected = found.float(), expected.float()
    spread = expected - expected.mean(dim=-1, keepdim=True)
    return float(((found - expected).norm(dim=-1) / spread.norm(dim=-1)).median())


def random_texts(
    config: PretrainedConfig, lengths: Sequence[int], *, more: int = 0, context: int | None = None
) -> list[list[int]]:
    """Random tokens of each of `lengths`, plus the model's largest local window as far as `context` allows, plus
    `more`."""
    config = config.get_text_config(decoder=True)
    room = min(context or 2**20, getattr(config, "max_position_embeddings", None) or 2**20)
    longer = max(0, min(_window(config), room - max(lengths) - more)) + more
    generator = torch.Generator().manual_seed(0)
    # Above the first tokens, which are often special.
    low = min(100, config.vocab_size // 2)
    return [
        torch.randint(low, config.vocab_size, (length + longer,), generator=generator).tolist() for length in lengths
    ]


def _window(config: PretrainedConfig) -> int:
    """The largest local window in tokens, under whatever name; 0 for none."""
    sizes = [
        value
        for name, value in config.to_dict().items()
        if any(word in name for word in ("window", "chunk", "block_size", "local"))
        and type(value) is int
        and 0 < value <= _LARGEST_WINDOW
    ]
    return max(sizes, default=0)
