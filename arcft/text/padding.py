"""Choose the padding token of a batch."""

from __future__ import annotations

import contextlib
import re
from typing import Literal

from transformers import PreTrainedTokenizerBase

from arcft.text.tokens import Tokenization, TokenizationError

_PADDING_NAMES = (
    re.compile(r"[<\[].*pad.*[>\]]", re.IGNORECASE),
    re.compile(r"[<\[].*(reserved|unused|extra|placeholder|dummy).*[>\]]", re.IGNORECASE),
)


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """The id of a padding token that never ends a turn; otherwise a model could not learn to stop.

    It is the tokenizer's own pad token if usable, else a token named as padding or reserved, else the unknown token,
    else the last ordinary token; always below `rows`, the number of embeddings, because some tokenizers add a pad token
    beyond them. No token is added: that would resize the embeddings, which would then be saved whole. Any token works,
    because padding comes after everything that is attended to, or is masked, and has no label. The tokenizer is not
    modified.
    """
    ends = _all_ends(tokenizer)
    names = sorted(
        ((name, token) for name, token in tokenizer.get_vocab().items() if token < rows and token not in ends),
        key=lambda item: item[1],
    )
    usable = {token for _, token in names}
    if tokenizer.pad_token_id in usable:
        return tokenizer.pad_token_id
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    for pattern in _PADDING_NAMES:
        for name, token in names:
            if pattern.fullmatch(name):
                return token
    if tokenizer.unk_token_id in usable:
        return tokenizer.unk_token_id
    return max(usable - special)


def _all_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a turn, with the chat template or without it."""
    ends = set()
    kinds: tuple[Literal["auto", "never"], ...] = ("auto", "never")
    for chat_template in kinds:
        # The one that a run uses is checked where it is used.
        with contextlib.suppress(TokenizationError):
            ends |= set(Tokenization(tokenizer, chat_template=chat_template).end_ids)
    return ends
