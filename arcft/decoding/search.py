"""All completions above a probability threshold, as the ARChitects and NVARC search (ARC Prize 2024 and 2025).

Each prompt has a slot of the cache in which its completions are written depth first, so that no keys and values are
kept or copied for branches that wait. The first completion is the greedy one, decoded for all prompts side by side; the
others mostly agree with it and are verified along it in chunks. Free slots take over the likeliest open branches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import DecodingBatch, complete
from arcft.decoding.core.completion import Completion
from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.search_row import BranchingRow, NextToken, SearchState
from arcft.decoding.options import DecodingOptions, check_one_each, token_limits
from arcft.decoding.probe import decoder_for
from arcft.errors import DecodingError
from arcft.models.families import CANNOT_SEARCH, Decoder


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found after one prompt."""

    completions: list[Completion]
    """Finished completions that reach the threshold, the likeliest first."""

    greedy: Completion
    """The greedy completion, whatever its probability and whether or not it is finished."""

    is_complete: bool
    """Whether `completions` are all there are; False where the node or time limit cut the search short."""

    nodes: int
    """Places in the searched texts where the model chose between several tokens, each counted once."""


def search(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    options: DecodingOptions,
    *,
    threshold: float,
    max_nodes: int,
    max_new_tokens: int | Sequence[int],
    draft_tokens: Sequence[Sequence[int] | None] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[SearchResult]:
    """Find each prompt's completions with a probability of at least `threshold`: at most 10 of them for 0.1.

    Args:
        model: A causal language model, as for `decode`.
        prompts: Token ids, at least one each.
        options: Shared with `decode` and `score`. `batch_size` is the number of branches that are written side by
            side; more than there are prompts are useful.
        threshold: Above 0, at most 1. Probabilities are the model's own, under a grammar normalised over the allowed
            tokens.
        max_nodes: Ends a prompt's search after this many choices; at least 1.
        max_new_tokens: The limit for all prompts, or one for each. Completions that it cuts off are not found.
        draft_tokens: Drafts of the greedy completions, for each prompt or None.
        until: Called after every forward pass; ends all searches once it returns true.

    Returns:
        A result for each prompt, in order. The greedy completion is always there, whatever the limits. Completions that
        differ only in their end token count once, with the likelier one.

    Raises:
        DecodingError: a threshold or number of nodes out of range, logits that are not finite, an empty prompt, a
            limit below 1, a list that does not have one entry for each prompt, or a model that goes through
            `generate`.
    """
    if decoder_for(model) is Decoder.GENERATE:
        raise DecodingError(CANNOT_SEARCH)
    if not 0 < threshold <= 1:
        raise DecodingError(f"threshold={threshold}: above 0, at most 1")
    if max_nodes < 1:
        raise DecodingError(f"max_nodes={max_nodes}: at least 1")
    limits = token_limits(prompts, max_new_tokens)
    if not prompts:
        return []
    check_one_each(prompts, {"draft_tokens": draft_tokens, "adapters": options.adapters})
    rows = [
        BranchingRow(
            number,
            prompt,
            limits[number],
            SearchState(threshold, max_nodes, until),
            end_ids=frozenset(options.end_ids),
            positions=options.positions,
            grammar=grammar,
            draft=None if draft_tokens is None else Draft(draft_tokens[number] or []),
        )
        for number, (prompt, grammar) in enumerate(zip(prompts, options.grammars(prompts), strict=True))
    ]
    complete(model, rows, _advance, options, batch=_SearchBatch)
    return [_result(row.state) for row in rows]


def _result(state: SearchState) -> SearchResult:
    assert state.greedy is not None
    return SearchResult(state.found(), state.greedy, state.is_complete, state.nodes)


class _SearchBatch(DecodingBatch[BranchingRow]):
    splits_rows = True

    def _admit(self) -> None:
        # New prompts decode token by token, and rows beside them could not verify in chunks: admit many at a time.
        if 2 * len(self._live) <= self._size:
            super()._admit()
        self._split()

    def _split(self) -> None:
        """Let free slots take over the likeliest branches of rows that have their greedy completion."""
        while len(self._live) < self._size:
            open_branches = [
                (branch.logprob, slot, branch)
                for slot, row in enumerate(self._live)
                if not row.is_greedy
                for branch in row.branches
            ]
            if not open_branches:
                return
            _, slot, branch = max(open_branches)
            other = self._live[slot].split_off(branch)
            if other.is_live:
                self._runner.cache.copy(slot, len(self._live), other.cached)
                self._live.append(other)
                self._evicted = -1

    def _forward(self, first: int, rows: Sequence[BranchingRow]) -> None:
        # A row that verifies beside one that does not would fill the pass with padding.
        use_drafts = all(row.has_draft for row in rows)
        for row in rows:
            row.use_draft = use_drafts
        super()._forward(first, rows)


def _advance(rows: Sequence[BranchingRow], chunks: Sequence[TokenChunk], scored: NextTokenLogits) -> None:
    """Append the likeliest tokens, and give each row the alternatives that may still reach its threshold."""
    top, places = scored.logits.max(dim=-1)
    below = scored.logits - top[:, :, None]
    # -log of the top token's probability. Exact where it is nearly certain: logsumexp in float32 would lose up to 1e-6
    # at each place of a long text.
    norms = below.exp().sum(dim=-1, dtype=torch.float64).log()
    least = norms - torch.tensor([row.slack for row in rows], dtype=torch.float64, device=norms.device)[:, None]
    likely = (below >= least[:, :, None]).scatter_(-1, places[:, :, None], False).nonzero(as_tuple=True)
    logprobs = below[likely].double() - norms[likely[0], likely[1]]
    tokens, others = places, likely[2]
    if scored.tokens is not None:
        tokens, others = scored.tokens[places], scored.tokens[others]
    alternatives: list[list[list[NextToken]]] = [[[] for _ in range(scored.logits.shape[1])] for _ in rows]
    for row, place, token, logprob in zip(
        likely[0].tolist(), likely[1].tolist(), others.tolist(), logprobs.tolist(), strict=True
    ):
        alternatives[row][place].append(NextToken(token, logprob))
    for row, chunk, own, values, others_of_row in zip(
        rows, chunks, tokens.tolist(), (-norms).tolist(), alternatives, strict=True
    ):
        row.advance(chunk, own, values, others_of_row)
