"""The bundled tokenizer: any text comes back, and what we write takes one token a cell or word."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from arcft.problems.arc.format.encoders import COLOR_NAMES, SYMBOLS
from tests.support.paths import ROOT

FOLDER = ROOT / "arcft" / "assets" / "tiny"


@functools.cache
def load() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "scripts" / "make_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Each token as the text that it stands for."""
    return [str(tokenizer.decode([token])) for token in tokenizer.encode(text, add_special_tokens=False)]


def test_what_is_committed_is_what_the_script_makes(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert json.loads((FOLDER / name).read_text("utf-8")) == json.loads((tmp_path / name).read_text("utf-8")), name


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = load()
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(token_ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "cut",
    [
        "```~grid~ shape~:~ ~2~x~1~0~\n~1~ ~0~1~\n~2~ ~ñ~ò~\n~```",
        "0~|~1~\n~2~|~3",
        "~".join("0123456789"),
        "~".join(SYMBOLS),
        "Black~" + "~".join(f" {name}" for name in COLOR_NAMES),
        "1~ Black~\n~2~ Brown",
        "Input~\n~1~\n~Output~\n~2~\n",
        "\n~\n~##~ Example~ ~1~2~\n~\n~###~ Input~\n~\n",
    ],
)
def test_tokens(tokenizer: PreTrainedTokenizerBase, cut: str) -> None:
    assert tokens_of(tokenizer, cut.replace("~", "")) == cut.split("~")


def test_every_piece_of_the_prompts_is_one_token(tokenizer: PreTrainedTokenizerBase, script: ModuleType) -> None:
    for piece in script.prompt_pieces():
        assert tokens_of(tokenizer, piece) == [piece]


def test_specials(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|begin|>", "<|end|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.chat_template is None
    assert tokenizer.encode("0") == [1, tokenizer.convert_tokens_to_ids("0")]


def test_architecture(tokenizer: PreTrainedTokenizerBase) -> None:
    config: Any = AutoConfig.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_663_840
    assert len(tokenizer) <= config.vocab_size < len(tokenizer) + 64
    assert config.vocab_size % 64 == 0
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_the_tokenizer_saved_beside_a_model_reads_the_same(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    # transformers rebuilds tokenizers beside a config.json of some types, Qwen2's among them.
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(FOLDER).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "```grid shape: 2x2\n1 01\n2 ñò\n``` Black Blue"
    assert again.encode(text) == tokenizer.encode(text)
