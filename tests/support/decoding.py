"""The decoder with its options as keywords, for tests that vary one of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding import decode as decoder
from arcft.decoding import hf_generate, likelihood
from arcft.decoding import search as searcher
from arcft.decoding.core.completion import Completion
from arcft.decoding.options import DecodingOptions
from arcft.decoding.search import SearchResult

SHARED = {"end_ids", "pad_id", "positions", "grammar", "batch_size", "share_prefixes", "adapters", "on_rows_changed"}

Model = PreTrainedModel | PeftModel


def _divided(keywords: dict[str, Any]) -> tuple[DecodingOptions, dict[str, Any]]:
    shared = {name: value for name, value in keywords.items() if name in SHARED}
    return DecodingOptions(**shared), {name: value for name, value in keywords.items() if name not in SHARED}


def decode(model: Model, prompts: Sequence[list[int]], **keywords: Any) -> list[Completion]:
    options, own = _divided(keywords)
    return decoder.decode(model, prompts, options, **own)


def search(model: Model, prompts: Sequence[list[int]], **keywords: Any) -> list[SearchResult]:
    options, own = _divided(keywords)
    return searcher.search(model, prompts, options, **own)


def score(
    model: Model, prompts: Sequence[list[int]], completions: Sequence[Sequence[list[int]]], **keywords: Any
) -> list[list[float]]:
    return likelihood.score(model, prompts, completions, DecodingOptions(**keywords))


def generate(model: Model, prompts: Sequence[list[int]], **keywords: Any) -> list[Completion]:
    options, own = _divided(keywords)
    return hf_generate.generate(model, prompts, options, **own)
