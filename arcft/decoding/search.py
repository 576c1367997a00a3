"""Find all completions that are likelier than a threshold, as the ARChitects and NVARC do (ARC Prize 2024 and 2025).

Each prompt has a slot of the cache, in which its completions are written by depth first, so that no keys and values
are kept or copied for branches that wait. The first is the greedy one, of all prompts side by side; the others mostly
follow it, and are verified along it in chunks. Slots that are free take over the likeliest branches of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import DecodingBatch, Route, complete
from arcft.decoding.core.completion import Completion
from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.search_row import BranchingRow, NextToken, SearchState
from arcft.decoding.decode import token_limits
from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found after one prompt."""

    completions: list[Completion]
    """Those that have ended and reach the threshold, the likeliest first."""

    greedy: Completion
    """What `decode` would have written, whatever it is worth and whether it has ended or not."""

    is_complete: bool
    """Whether `completions` are all that there are; False where a limit of nodes or time left some branches out."""

    nodes: int
    """Choices that the model was asked about, each once: places in texts where several tokens might come next."""


def search(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    *,
    threshold: float,
    max_nodes: int,
    max_new_tokens: int | Sequence[int],
    end_ids: Sequence[int],
    pad_id: int,
    positions: Positions | None = None,
    grammar: Grammar | Sequence[Grammar] | None = None,
    guesses: Sequence[Sequence[int] | None] | None = None,
    batch_size: int | None = None,
    route: Route | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[Found]:
    """Find each prompt's completions whose probability is `threshold` or more: at most 10 for 0.1. Return them in the
    order of `prompts`.

    Probabilities are those of the model itself, or under a `grammar` shares of the tokens that it allows. What is cut
    off by `max_new_tokens` is not found. Of completions that differ in nothing but the end token, of which there may be
    several, the likelier counts.

    No prompt is followed any further once the model was asked about `max_nodes` of its choices, nor any once `until`,
    asked after every pass, is true; then the results say so. The greedy completion is written in any case.

    `batch_size` branches at most are written side by side (None: as many as there are prompts); more than there are
    prompts have a use. `guesses` are for the greedy completions. The other options are those of `decode`, and mean the
    same: `route` is told prompts by their numbers, and `adapters` are for each prompt.

    Raises DecodingError for a threshold that is no probability above 0, fewer than 1 nodes, logits that are not finite,
    an empty prompt, a limit below 1, or lists that are not of one length.
    """
    if not 0 < threshold <= 1:
        raise DecodingError(f"threshold={threshold}: above 0, at most 1")
    if max_nodes < 1:
        raise DecodingError(f"max_nodes={max_nodes}: at least 1")
    limits = token_limits(prompts, max_new_tokens)
    if not prompts:
        return []
    grammars = grammar if isinstance(grammar, Sequence) else [grammar] * len(prompts)
    for name, values in (("grammars", grammars), ("guesses", guesses), ("adapters", adapters)):
        if values is not None and len(values) != len(prompts):
            raise DecodingError(f"{len(values)} {name} for {len(prompts)} prompts; give one for each")
    rows = [
        BranchingRow(
            number,
            prompt,
            limits[number],
            SearchState(threshold, max_nodes, until),
            end_ids=frozenset(end_ids),
            positions=positions,
            grammar=own,
            guess=None if guesses is None else Draft(guesses[number] or []),
        )
        for number, (prompt, own) in enumerate(zip(prompts, grammars, strict=True))
    ]
    complete(
        model,
        rows,
        _read,
        pad_id=pad_id,
        batch_size=batch_size,
        share_prefixes=True,
        route=route,
        adapters=adapters,
        batch=_Branches,
    )
    return [_found(row.state) for row in rows]


def _found(state: SearchState) -> Found:
    assert state.greedy is not None
    return Found(state.found(), state.greedy, state.is_complete, state.nodes)


class _Branches(DecodingBatch[BranchingRow]):
    divides = True

    def _admit(self) -> None:
        # A few prompts that begin beside others that verify would keep these from it.
        if 2 * len(self._live) <= self._size:
            super()._admit()
        self._divide()

    def _divide(self) -> None:
        """Let free slots take over the likeliest branches of rows that have their first completion."""
        while len(self._live) < self._size:
            open_branches = [
                (branch.logprob, slot, branch)
                for slot, row in enumerate(self._live)
                if not row.is_first
                for branch in row.branches
            ]
            if not open_branches:
                return
            _, slot, branch = max(open_branches)
            other = self._live[slot].divide(branch)
            if other.is_live:
                self._passes.cache.copy(slot, len(self._live), other.fed)
                self._live.append(other)
                self._last_left = -1

    def _advance(self, first: int, rows: Sequence[BranchingRow]) -> None:
        # A row that verifies beside one that does not would fill a pass with padding.
        may_guess = all(row.has_guess for row in rows)
        for row in rows:
            row.may_guess = may_guess
        super()._advance(first, rows)


def _read(rows: Sequence[BranchingRow], chunks: Sequence[TokenChunk], scores: NextTokenLogits) -> None:
    """Let `rows` go on with the likeliest tokens, and tell them of the others that are worth it."""
    top, places = scores.logits.max(dim=-1)
    below = scores.logits - top[:, :, None]
    # Exact where a token is nearly certain; logsumexp of float32 would lose up to 1e-6 at each place of a long text.
    norms = below.exp().sum(dim=-1, dtype=torch.float64).log()
    least = norms - torch.tensor([row.room for row in rows], dtype=torch.float64, device=norms.device)[:, None]
    worth = (below >= least[:, :, None]).scatter_(-1, places[:, :, None], False).nonzero(as_tuple=True)
    logprobs = below[worth].double() - norms[worth[0], worth[1]]
    tokens, others = places, worth[2]
    if scores.tokens is not None:
        tokens, others = scores.tokens[places], scores.tokens[others]
    ways: list[list[list[NextToken]]] = [[[] for _ in range(scores.logits.shape[1])] for _ in rows]
    for row, place, token, logprob in zip(
        worth[0].tolist(), worth[1].tolist(), others.tolist(), logprobs.tolist(), strict=True
    ):
        ways[row][place].append(NextToken(token, logprob))
    for row, chunk, own, values, others_of_row in zip(
        rows, chunks, tokens.tolist(), (-norms).tolist(), ways, strict=True
    ):
        row.read(chunk, own, values, others_of_row)
