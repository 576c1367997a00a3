"""The tokenizer inside a GGUF file, rebuilt from the file's metadata.

transformers 5.17 swaps the end and begin tokens of such files, omits the digit splitter, and decodes bytes twice; so
byte-level tokenizers are built here, from the keys that llama.cpp reads.
"""

from __future__ import annotations

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

_CONTROL, _USER_DEFINED = 3, 4


class GgufTokenizerError(ArcftError):
    """The tokenizer in a GGUF file can't be rebuilt faithfully."""


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, as its model was trained with it. Raise GgufTokenizerError for unknown kinds."""
    metadata = _read_metadata(path)
    kind, pieces = metadata.get("tokenizer.ggml.model", "unknown"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pieces not in ("smollm", "qwen2", "llama-bpe", "gpt-2"):
        raise GgufTokenizerError(
            f"model.path={path}: its tokenizer is of the kind {kind}/{pieces}, which can't be rebuilt faithfully from "
            "a GGUF file; give the model's own tokenizer, e.g. model.tokenizer=FOLDER with its tokenizer.json"
        )
    tokenizer = _byte_level_tokenizer(metadata, pieces)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in names.items()
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
