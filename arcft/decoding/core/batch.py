"""Continuous batching: rows that end leave the batch at once, and waiting rows take their slots.

`complete` is the loop behind `decode`, `search` and `score`. What is specific to each of them is how a row advances
when the model has produced logits for it (`Advance`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.attention import decoding_attention
from arcft.decoding.core.completion import Row
from arcft.decoding.core.draft import MAX_CHUNK
from arcft.decoding.core.forward import ForwardRunner, TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.prefix_sharing import MIN_SHARED_TOKENS, Prefixes
from arcft.decoding.options import DecodingOptions
from arcft.errors import DecodingError

RowT = TypeVar("RowT", bound=Row)

Choose = Callable[[Sequence[Row], Sequence[TokenChunk], NextTokenLogits], torch.Tensor]
"""Picks the next tokens: indices into the last dimension of the logits, int64 [rows, places]."""

Advance = Callable[[Sequence[RowT], Sequence[TokenChunk], NextTokenLogits], None]
"""Advances rows by the logits after their chunks."""

_MAX_MASK_ENTRIES = 2**25
"""Limits the attention mask of a pass that needs one, and so how many tokens of each row it takes."""

_MIN_SHARED_FRACTION = 0.2
"""Minimum shared fraction of a prompt for prefix sharing to pay for the extra masked pass."""

_MAX_PADDING_FRACTION, _FREE_PADDING = 0.25, 256
"""A pass with more padding than this fraction of its tokens is split; a few tokens of padding are always accepted."""


def complete(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[RowT],
    advance: Advance[RowT],
    options: DecodingOptions,
    *,
    batch: type[DecodingBatch[RowT]] | None = None,
) -> None:
    """Feed `rows` to `model` until each has ended.

    `model` runs in evaluation mode without gradients, and its mode is restored. `batch` replaces DecodingBatch. Raise
    DecodingError for a batch size below 1.
    """
    if options.batch_size is not None and options.batch_size < 1:
        raise DecodingError(f"batch_size={options.batch_size}: at least 1")
    for index, row in enumerate(rows):
        row.index = index
    batch = batch or DecodingBatch
    size = options.batch_size or len(rows)
    if not batch.splits_rows:
        size = min(size, len(rows))
    adapters = None if options.adapters is None else [options.adapters[row.prompt_index] for row in rows]
    shares = options.share_prefixes and (options.on_rows_changed is None or adapters is not None)
    prefixes = (
        Prefixes([row.ids[: row.prompt_length] for row in rows], adapters) if shares or size < len(rows) else None
    )
    waiting = rows
    if prefixes is not None and size < len(rows):
        # Rows with a common prefix follow each other, so that it is still cached when the next one needs it.
        waiting = [rows[index] for family in prefixes.families() for index in family]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), decoding_attention(model):
            runner = ForwardRunner(model, size, pad_id=options.pad_id, on_rows_changed=options.on_rows_changed)
            batch(runner, waiting, size, advance, prefixes=prefixes if shares else None).complete()
    finally:
        model.train(was_training)


def advance_by(choose: Choose) -> Advance[Row]:
    """Append the tokens that `choose` picks, with their log-probabilities."""

    def advance(rows: Sequence[Row], chunks: Sequence[TokenChunk], scored: NextTokenLogits) -> None:
        logits = scored.logits
        places = choose(rows, chunks, scored)
        logprobs = logits.gather(-1, places[:, :, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        tokens = places if scored.tokens is None else scored.tokens[places]
        # tolist() is the only synchronisation with the device in a pass.
        for row, chunk, own, values in zip(rows, chunks, tokens.tolist(), logprobs.tolist(), strict=True):
            row.advance(chunk, own, values)

    return advance


class DecodingBatch(Generic[RowT]):
    """The rows in the cache: the live row i occupies slot i."""

    splits_rows = False
    """Whether more slots than rows are useful, because rows may split up."""

    def __init__(
        self,
        runner: ForwardRunner,
        rows: Sequence[RowT],
        size: int,
        advance: Advance[RowT],
        *,
        prefixes: Prefixes | None,
    ) -> None:
        """`size` is the number of slots; `prefixes` are those of the rows' prompts, or None to share none."""
        self._runner = runner
        self._size = size
        self._advance_rows = advance
        self._prefixes = prefixes
        self._live: list[RowT] = []
        self._waiting = deque(row for row in rows if row.is_live)
        self._evicted = -1  # index of the row whose keys and values are still in the first free slot

    def complete(self) -> None:
        """Run forward passes until each row has ended."""
        while self._waiting or self._live:
            self._admit()
            if self._live:
                self._forward(0, self._live)
                self._remove_ended()

    def _admit(self) -> None:
        """Move waiting rows into free slots and prefill their prompts."""
        free = self._size - len(self._live)
        arriving = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        while arriving:
            first = len(self._live)
            arriving = self._assign_slots(arriving)
            for start, run in self._prefill_runs(first):
                while unfinished := [row for row in run if row.in_prefill]:
                    self._forward(start, unfinished)
        self._remove_ended()

    def _assign_slots(self, arriving: list[RowT]) -> list[RowT]:
        """Assign slots to the rows of `arriving` that can start, and copy the prefixes they share; return the rest."""
        now, later = [(row, 0) for row in arriving], list[RowT]()
        if self._prefixes is not None:
            now, later = self._share(arriving, self._prefixes)
        fresh = [pair for pair in now if pair[0].cached == 0]
        lengths = [row.prompt_length for row, _ in fresh]
        if _is_wasteful(len(fresh) * max(lengths, default=0), sum(lengths)):
            fresh.sort(key=lambda pair: -pair[0].prompt_length)
        # The rest of a prompt may take several passes. A pass covers adjacent slots, so the rows that finish first
        # must be the last ones.
        shared = sorted(
            (pair for pair in now if pair[0].cached > 0), key=lambda pair: pair[0].cached - pair[0].prompt_length
        )
        for row, source in fresh + shared:
            if row.cached > 0:
                self._runner.cache.copy(source, len(self._live), row.cached)
            self._live.append(row)
        self._evicted = -1
        return later

    def _share(self, arriving: Sequence[RowT], prefixes: Prefixes) -> tuple[list[tuple[RowT, int]], list[RowT]]:
        """Split `arriving` into rows that start now, each with the slot that holds its shared prefix, and rows that
        wait because they share more with one of those."""
        slots = {row.index: slot for slot, row in enumerate(self._live)}
        if len(arriving) == 1 and self._evicted >= 0:
            slots.setdefault(self._evicted, len(self._live))
        residents = sorted(slots, key=prefixes.rank.__getitem__)
        now: list[tuple[RowT, int]] = []
        later: list[RowT] = []
        for row in sorted(arriving, key=lambda row: prefixes.rank[row.index]):
            donor, shared = prefixes.nearest(row.index, residents)
            minimum = max(MIN_SHARED_TOKENS, _MIN_SHARED_FRACTION * row.prompt_length)
            if now and prefixes.common(now[-1][0].index, row.index) >= shared + minimum:
                later.append(row)
                continue
            # The last token is always fed: its logits give the first token of the completion.
            shared = min(shared, row.prompt_length - 1)
            if shared >= minimum:
                row.reuse_prefix(shared)
            now.append((row, slots.get(donor, 0)))
        return now, later

    def _prefill_runs(self, first: int) -> Iterator[tuple[int, list[RowT]]]:
        """Group the rows from slot `first` on into forward passes; yield the first slot and the rows of each."""
        start, total, longest = first, 0, 0
        for slot in range(first, len(self._live)):
            row = self._live[slot]
            length = row.prompt_length - row.cached
            total, longest = total + length, max(longest, length)
            mixed = (row.cached > 0) != (self._live[start].cached > 0)
            padded = (slot - start + 1) * longest
            too_many = slot > start and padded > self._runner.max_prefill_tokens
            if mixed or too_many or _is_wasteful(padded, total):
                yield start, self._live[start:slot]
                start, total, longest = slot, length, length
        yield start, self._live[start:]

    def _forward(self, first: int, rows: Sequence[RowT]) -> None:
        """Run one forward pass over `rows`, which occupy the slots from `first` on."""
        max_tokens = max(len(row.ids) for row in rows) + MAX_CHUNK
        if any(row.cached > 0 for row in rows):
            max_tokens = max(1, _MAX_MASK_ENTRIES // (len(rows) * max_tokens))
        chunks = [row.next_chunk(max_tokens) for row in rows]
        scored = self._runner.run(first, [row.prompt_index for row in rows], chunks)
        if not any(chunk.logits_at for chunk in chunks):
            for row, chunk in zip(rows, chunks, strict=True):
                row.advance(chunk, [], [])
            return
        self._advance_rows(rows, chunks, scored)

    def _remove_ended(self) -> None:
        """Remove rows that have ended, and move the last rows into the gaps."""
        slot = 0
        while slot < len(self._live):
            if self._live[slot].is_live:
                slot += 1
                continue
            last = self._live.pop()
            self._evicted = last.index
            if last.is_live:
                self._runner.cache.copy(len(self._live), slot, last.cached)
                self._live[slot] = last


def _is_wasteful(padded: int, tokens: int) -> bool:
    """Whether a pass over `tokens` tokens, `padded` with padding, is better split up."""
    return padded - tokens > max(_FREE_PADDING, _MAX_PADDING_FRACTION * tokens)
