"""The tokenizer inside a GGUF file: rebuilt from the file's metadata, and written.

transformers 5.17 swaps the end and begin tokens of such files, omits the digit splitter, and decodes bytes twice; so
byte-level tokenizers are built here, from the keys that llama.cpp reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from arcft.errors import ArcftError

# Pre-tokenizer patterns by the name in `tokenizer.ggml.pre`, copied from the models' own tokenizer.json.
_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2_PATTERN = _LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_PRE_TOKENIZERS = ("smollm", "qwen2", "llama-bpe", "gpt-2")
"""Those that can be rebuilt faithfully, by their names in llama.cpp."""

_PROBES = (
    "0123456789 12\n\n3 don't  stop, we'll\tgo",
    "```grid shape: 2x2\n1 01\n2 23\n```\n### Output\n\n",
    "\u00e9\u2603 e\u0301 CamelCase  trailing  \n\r\n 100000 x=3.14;",
)
"""Texts that the pre-tokenizers cut in different ways."""


class GgufTokenizerError(ArcftError):
    """The tokenizer in a GGUF file can't be rebuilt faithfully."""


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, as its model was trained with it. Raise GgufTokenizerError for unknown kinds."""
    metadata = _read_metadata(path)
    kind, pieces = metadata.get("tokenizer.ggml.model", "unknown"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pieces not in _PRE_TOKENIZERS:
        raise GgufTokenizerError(
            f"model.path={path}: its tokenizer is of the kind {kind}/{pieces}, which can't be rebuilt faithfully from "
            "a GGUF file; give the model's own tokenizer, e.g. model.tokenizer=FOLDER with its tokenizer.json"
        )
    return _rebuilt(metadata, pieces)


def pretokenizer_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
    """The name in llama.cpp of how `tokenizer` cuts text, found by rebuilding it in each way that is known and
    comparing the tokens of `texts`. Raise GgufTokenizerError where none gives the same."""
    core = tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    if core is not None and isinstance(core.model, models.BPE):
        wanted = [tokenizer(text)["input_ids"] for text in (*_PROBES, *texts)]
        metadata = gguf_metadata(tokenizer, len(tokenizer))
        for pieces in _PRE_TOKENIZERS:
            rebuilt = _rebuilt(metadata, pieces)
            if [rebuilt(text)["input_ids"] for text in (*_PROBES, *texts)] == wanted:
                return pieces
    raise GgufTokenizerError(
        f"format=gguf: the tokenizer, {type(tokenizer).__name__}, is not one that a GGUF file describes faithfully "
        f"here: byte-level BPE that cuts text like {', '.join(_PRE_TOKENIZERS)}; use format=merged"
    )


def gguf_metadata(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, Any]:
    """`tokenizer`, byte-level BPE, under GGUF's keys but for the name of its pre-tokenizer.

    It has as many tokens as the model has embeddings, `vocab_size`: llama.cpp reads no other file. Tokens beyond, which
    the model can't read, are left out.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    tokens = [by_id.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size)]
    kinds = [_NORMAL if token_id in by_id else _UNUSED for token_id in range(vocab_size)]
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if token_id < vocab_size:
            kinds[token_id] = _CONTROL if added.special else _USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in core["model"]["merges"]]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }
    for ours, theirs in _SPECIAL.items():
        token_id = getattr(tokenizer, f"{ours}_token_id")
        if token_id is not None and token_id < vocab_size:
            metadata[f"tokenizer.ggml.{theirs}_token_id"] = token_id
    first = tokenizer("0")["input_ids"][0]
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id
    if isinstance(tokenizer.chat_template, str):
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def write_gguf_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, pieces: str, vocab_size: int, end_id: int | None
) -> None:
    """Add `tokenizer` to a GGUF file; `pieces` is the name of `pretokenizer_of`, and `end_id` the token that ends an
    answer, if it is to be told."""
    metadata = gguf_metadata(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pieces)
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_add_bos_token(metadata["tokenizer.ggml.add_bos_token"])
    for theirs in _SPECIAL.values():
        key = f"tokenizer.ggml.{theirs}_token_id"
        if key in metadata:
            writer.add_uint32(key, metadata[key])
    if end_id is not None:
        writer.add_eot_token_id(end_id)
    if "tokenizer.chat_template" in metadata:
        writer.add_chat_template(metadata["tokenizer.chat_template"])


_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens, by the names of transformers and of GGUF."""


def _rebuilt(metadata: dict[str, Any], pieces: str) -> PreTrainedTokenizerBase:
    tokenizer = _byte_level_tokenizer(metadata, pieces)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in _SPECIAL.items()
        if f"tokenizer.ggml.{theirs}_token_id" in metadata
    }
    if metadata.get("tokenizer.ggml.add_bos_token", pieces == "llama-bpe"):
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A {begin} $B",
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        reader = gguf.GGUFReader(path)
        wanted = (name for name in reader.fields if name.startswith("tokenizer."))
        return {name: reader.fields[name].contents() for name in wanted}
    # A truncated file ends in the middle of a field.
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise GgufTokenizerError(f"model.path={path}: can't be read as a GGUF file: {error}") from error


def _byte_level_tokenizer(metadata: dict[str, Any], pieces: str) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    # Llama 3 keeps a piece that is itself a token, even if no sequence of merges produces it.
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=pieces == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    if pieces == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    return tokenizer


def _pre_tokenizer(pieces: str) -> pre_tokenizers.PreTokenizer:
    by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pieces == "gpt-2":
        return by_regex
    if pieces == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_regex])
    pattern = Regex(_LLAMA_3_PATTERN if pieces == "llama-bpe" else _QWEN_2_PATTERN)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
