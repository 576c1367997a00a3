"""The rows that are completed side by side: those that end leave at once, and those that wait take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.attention import decoding_attention
from arcft.decoding.core.draft import LONGEST
from arcft.decoding.core.forward import ForwardRunner, TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.prefix_sharing import SHORTEST, Prefixes
from arcft.decoding.core.rows import Row
from arcft.errors import DecodingError

RowT = TypeVar("RowT", bound=Row)

Choose = Callable[[Sequence[Row], Sequence[TokenChunk], NextTokenLogits], torch.Tensor]
"""Says which of the scores' tokens come next: places in their last dimension, [rows, asked]."""

Read = Callable[[Sequence[RowT], Sequence[TokenChunk], NextTokenLogits], None]
"""Lets rows go on by what the model says after the tokens that their chunks asked about."""

Route = Callable[[Sequence[int]], None]
"""Is told which prompts the rows of the passes to come hold, by their numbers."""

_MASK_ENTRIES = 2**25
"""Of a pass that needs a mask, and with it the rows' tokens in one pass, are limited to these."""

_SHARE = 0.2
"""Of a prompt, has to be in common with another to be worth a second pass, whose attention needs a mask."""

_PADDING, _FEW = 0.25, 256
"""What is more padding than such a share of the tokens, and more than a few, is fed in several passes."""


def complete(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[RowT],
    read: Read[RowT],
    *,
    pad_id: int,
    batch_size: int | None,
    share_prefixes: bool,
    route: Route | None,
    adapters: Sequence[int] | None,
    batch: type[DecodingBatch[RowT]] | None = None,
) -> None:
    """Feed `rows` to `model` until each has ended. Of the other arguments, see decode; `adapters` are for each row.

    Raises DecodingError for a batch size below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise DecodingError(f"batch_size={batch_size}: at least 1")
    for key, row in enumerate(rows):
        row.key = key
    batch = batch or DecodingBatch
    size = batch_size or len(rows)
    if not batch.divides:
        size = min(size, len(rows))
    shares = share_prefixes and (route is None or adapters is not None)
    prefixes = (
        Prefixes([row.ids[: row.prompt_length] for row in rows], adapters) if shares or size < len(rows) else None
    )
    waiting = rows
    if prefixes is not None and size < len(rows):
        waiting = [rows[place] for family in prefixes.families() for place in family]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), decoding_attention(model):
            passes = ForwardRunner(model, size, pad_id=pad_id, route=route)
            batch(passes, waiting, size, read, prefixes=prefixes if shares else None).complete()
    finally:
        model.train(was_training)


def chosen(choose: Choose) -> Read[Row]:
    """Rows go on with one token at each place, and its log-probability."""

    def read(rows: Sequence[Row], chunks: Sequence[TokenChunk], scores: NextTokenLogits) -> None:
        logits = scores.logits
        places = choose(rows, chunks, scores)
        logprobs = logits.gather(-1, places[:, :, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        tokens = places if scores.tokens is None else scores.tokens[places]
        # The one place in a pass that waits for the device.
        for row, chunk, own, values in zip(rows, chunks, tokens.tolist(), logprobs.tolist(), strict=True):
            row.read(chunk, own, values)

    return read


class DecodingBatch(Generic[RowT]):
    """Row i lies in slot i of the cache."""

    divides = False
    """Whether there is use for more slots than rows, because some rows are divided among them."""

    def __init__(
        self,
        passes: ForwardRunner,
        rows: Sequence[RowT],
        size: int,
        read: Read[RowT],
        *,
        prefixes: Prefixes | None,
    ) -> None:
        """`size` rows at most are completed at the same time; `prefixes` are those of the rows' prompts, if what they
        have in common is to be shared."""
        self._passes = passes
        self._size = size
        self._read = read
        self._prefixes = prefixes
        self._live: list[RowT] = []
        self._waiting = deque(row for row in rows if row.is_live)
        self._last_left = -1  # the key of the row that the first free slot still holds

    def complete(self) -> None:
        """Extend all rows until each has ended."""
        while self._waiting or self._live:
            self._admit()
            if self._live:
                self._advance(0, self._live)
                self._leave()

    def _admit(self) -> None:
        """Fill the free slots, and feed their prompts."""
        free = self._size - len(self._live)
        arriving = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        while arriving:
            first = len(self._live)
            arriving = self._place(arriving)
            for start, run in self._runs(first):
                while still := [row for row in run if row.is_open]:
                    self._advance(start, still)
        self._leave()

    def _place(self, arriving: list[RowT]) -> list[RowT]:
        """Give slots to those of `arriving` that can begin, with what they share with rows that have; return the
        others."""
        now, later = [(row, 0) for row in arriving], list[RowT]()
        if self._prefixes is not None:
            now, later = self._share(arriving, self._prefixes)
        fresh = [pair for pair in now if pair[0].fed == 0]
        lengths = [row.prompt_length for row, _ in fresh]
        if _is_wasteful(len(fresh) * max(lengths, default=0), sum(lengths)):
            fresh.sort(key=lambda pair: -pair[0].prompt_length)
        # Those may be fed piece by piece, and rows that are through must not stand between others.
        begun = sorted((pair for pair in now if pair[0].fed > 0), key=lambda pair: pair[0].fed - pair[0].prompt_length)
        for row, source in fresh + begun:
            if row.fed > 0:
                self._passes.cache.copy(source, len(self._live), row.fed)
            self._live.append(row)
        self._last_left = -1
        return later

    def _share(self, arriving: Sequence[RowT], prefixes: Prefixes) -> tuple[list[tuple[RowT, int]], list[RowT]]:
        """The rows that begin now, with the slot that holds what they need not be fed, and the rows that had better
        wait, because they share more with one of these."""
        slots = {row.key: slot for slot, row in enumerate(self._live)}
        if len(arriving) == 1 and self._last_left >= 0:
            slots.setdefault(self._last_left, len(self._live))
        residents = sorted(slots, key=prefixes.rank.__getitem__)
        now: list[tuple[RowT, int]] = []
        later: list[RowT] = []
        for row in sorted(arriving, key=lambda row: prefixes.rank[row.key]):
            donor, shared = prefixes.nearest(row.key, residents)
            worth = max(SHORTEST, _SHARE * row.prompt_length)
            if now and prefixes.common(now[-1][0].key, row.key) >= shared + worth:
                later.append(row)
                continue
            shared = min(shared, row.prompt_length - 1)
            if shared >= worth:
                row.skip(shared)
            now.append((row, slots.get(donor, 0)))
        return now, later

    def _runs(self, first: int) -> Iterator[tuple[int, list[RowT]]]:
        """The rows from slot `first` on in groups that are fed together, each with its first slot."""
        start, total, longest = first, 0, 0
        for slot in range(first, len(self._live)):
            row = self._live[slot]
            length = row.prompt_length - row.fed
            total, longest = total + length, max(longest, length)
            mixed = (row.fed > 0) != (self._live[start].fed > 0)
            padded = (slot - start + 1) * longest
            too_many = slot > start and padded > self._passes.most_tokens
            if mixed or too_many or _is_wasteful(padded, total):
                yield start, self._live[start:slot]
                start, total, longest = slot, length, length
        yield start, self._live[start:]

    def _advance(self, first: int, rows: Sequence[RowT]) -> None:
        """One pass over `rows`, which lie in the slots from `first` on."""
        most = max(len(row.ids) for row in rows) + LONGEST
        if any(row.fed > 0 for row in rows):
            most = max(1, _MASK_ENTRIES // (len(rows) * most))
        chunks = [row.chunk(most) for row in rows]
        scores = self._passes.run(first, [row.number for row in rows], chunks)
        if not any(chunk.asked for chunk in chunks):
            for row, chunk in zip(rows, chunks, strict=True):
                row.read(chunk, [], [])
            return
        self._read(rows, chunks, scores)

    def _leave(self) -> None:
        """Let the rows that have ended go, and close the gaps with the last rows."""
        slot = 0
        while slot < len(self._live):
            if self._live[slot].is_live:
                slot += 1
                continue
            last = self._live.pop()
            self._last_left = last.key
            if last.is_live:
                self._passes.cache.copy(len(self._live), slot, last.fed)
                self._live[slot] = last


def _is_wasteful(fed: int, tokens: int) -> bool:
    """Whether a pass over `tokens` tokens, `fed` with padding, had better be divided."""
    return fed - tokens > max(_FEW, _PADDING * tokens)
