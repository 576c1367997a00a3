"""A tokenizer whose first ids are the tokens that a run can use, for models that have no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from arcft.text.padding import choose_pad_token
from arcft.text.tokens import Tokenization

MULTIPLE = 64
"""Kept tokens are filled up to a multiple of this: matrix products treat whole blocks of columns alike, whatever their
number, so that the logits of a smaller head are those of the full one to the last bit."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LAST_BYTE_SIGN = 0x143
"""Byte-level tokenizers write the 256 bytes as the signs up to this code point."""
_UNFINISHED = "\ufffd"
_SPACES = "\u0120\u010a\u0109\u010d\u2581"
"""How pieces write space, newline, tab, carriage return, and sentencepiece a space."""


class PrunedTokenizer:
    """A tokenizer of transformers with other ids: `kept`, in their order, are 0 to K - 1, all other tokens follow.

    So it writes and reads every text that the full tokenizer does, and what is outside is seen by its id. Has what
    arcft uses of a tokenizer; `save_pretrained` writes the full one.
    """

    def __init__(self, full: PreTrainedTokenizerBase, kept: Sequence[int]) -> None:
        self.full = full
        self.kept = tuple(sorted(kept))
        inside = set(self.kept)
        largest = max(full.get_vocab().values())
        self._to_full = [*self.kept, *(token for token in range(largest + 1) if token not in inside)]
        self._to_own = [0] * len(self._to_full)
        for own, token in enumerate(self._to_full):
            self._to_own[token] = own

    # With ids

    def __call__(self, text: Any, **options: Any) -> Any:
        encoding = self.full(text, **options)
        ids = encoding["input_ids"]
        nested = bool(ids) and isinstance(ids[0], list)
        encoding["input_ids"] = [self._own(row) for row in ids] if nested else self._own(ids)
        return encoding

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._own(self.full.encode(text, **options))

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        return cast(str, self.full.decode([self._to_full[token] for token in token_ids], **options))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return cast(list[str], self.full.convert_ids_to_tokens([self._to_full[token] for token in ids]))

    def get_vocab(self) -> dict[str, int]:
        return {name: self._to_own[token] for name, token in self.full.get_vocab().items()}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return {self._to_own[token]: added for token, added in self.full.added_tokens_decoder.items()}

    @property
    def eos_token_id(self) -> int | None:
        return self._own_or_none(self.full.eos_token_id)

    @property
    def pad_token_id(self) -> int | None:
        return self._own_or_none(self.full.pad_token_id)

    @property
    def unk_token_id(self) -> int | None:
        return self._own_or_none(self.full.unk_token_id)

    def _own(self, ids: Iterable[int]) -> list[int]:
        return [self._to_own[token] for token in ids]

    def _own_or_none(self, token: int | None) -> int | None:
        return None if token is None else self._to_own[token]

    # Without

    @property
    def is_fast(self) -> bool:
        return self.full.is_fast

    @property
    def name_or_path(self) -> str:
        return str(self.full.name_or_path)

    @property
    def chat_template(self) -> Any:
        return self.full.chat_template

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        return self.full.apply_chat_template(*arguments, **options)

    def save_pretrained(self, folder: str | Path) -> Any:
        return self.full.save_pretrained(folder)


def kept_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """The full vocabulary's ids that a PrunedTokenizer keeps, ascending; None for any other tokenizer."""
    return tokenizer.kept if isinstance(tokenizer, PrunedTokenizer) else None


def prune_tokenizer(
    tokenization: Tokenization, used: Iterable[int], *, characters: str, rows: int
) -> PreTrainedTokenizerBase:
    """A PrunedTokenizer that keeps the tokens in `used` and what goes with them.

    That is: the tokens that end, begin and pad a text; every token that is made of `characters` alone, since these may
    come in any order; and the tokens of single bytes. Ids from `rows` on have no embedding and are left out.
    """
    tokenizer = tokenization.tokenizer
    kept = {*used, *tokenization.end_ids, *tokenization.prompt_ids("", "", ""), choose_pad_token(tokenizer, rows)}
    if tokenizer.unk_token_id is not None:
        kept.add(tokenizer.unk_token_id)
    vocabulary = sorted((token, piece) for piece, token in tokenizer.get_vocab().items() if token < rows)
    for token, piece in vocabulary:
        is_byte = _BYTE.fullmatch(piece) or (len(piece) == 1 and ord(piece) <= _LAST_BYTE_SIGN)
        if is_byte or _is_made_of(characters, tokenizer, token, piece):
            kept.add(token)
    kept = {token for token in kept if token < rows}
    others = (token for token in range(rows) if token not in kept)
    missing = -len(kept) % MULTIPLE
    kept |= {token for token, _ in zip(others, range(missing), strict=False)}
    return cast(PreTrainedTokenizerBase, PrunedTokenizer(tokenizer, sorted(kept)))


def _is_made_of(characters: str, tokenizer: PreTrainedTokenizerBase, token: int, piece: str) -> bool:
    """Whether `token`, which the vocabulary writes as `piece`, is a text of `characters` alone."""
    # Decoding takes long for a large vocabulary. Pieces write ASCII as it is, but for white space.
    if any((sign.isascii() or characters.isascii()) and sign not in characters + _SPACES for sign in piece):
        return False
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    # A token may hold a part of a character's bytes.
    allowed = characters if characters.isascii() else characters + _UNFINISHED
    return bool(text) and set(allowed).issuperset(text)
