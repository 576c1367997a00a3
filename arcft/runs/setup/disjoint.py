"""Refuse training data that overlaps with given sets: data.disjoint_from."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from arcft.protocols import Item, Kind, ProblemError

Items = Sequence[Item]
MAX_NAMED = 20


def refuse_shared(kind: Kind, items: Items, names: Sequence[str]) -> dict[str, Items]:
    """The sets called `names`, after checking that `items` don't overlap with them.

    Raises ProblemError if an item has the id of one of their problems, equals it, shares a part with it, or is a pool
    of its type. The error names the items, what they share, and how to exclude them.
    """
    sets = {name: _load(kind, name) for name in names}
    # Usually nothing is shared, and comparing with all sets together takes as long as with one.
    everything = [item for of_set in sets.values() for item in of_set]
    if not everything or not (kind.overlap(items, everything).found or _same_ids(items, everything)):
        return sets
    lines: list[str] = []
    ids: set[str] = set()
    for name, of_set in sets.items():
        shared = _shared(kind, items, of_set)
        if shared:
            ids |= shared.keys()
            words = [f"{item_id} {why}" for item_id, why in sorted(shared.items())]
            lines.append(f"{name}: {'; '.join(words[:MAX_NAMED])}{_rest(len(words))}")
    raise ProblemError(
        f"data.disjoint_from: {len(ids)} of {len({item.id for item in items})} tasks to train on are not apart from "
        + "\n".join(lines)
        + f"\nTo leave them out: {_way_out(sorted(ids))}"
    )


def _load(kind: Kind, name: str) -> Items:
    try:
        return kind.load_set(name)
    except ProblemError as error:
        raise ProblemError(f"data.disjoint_from: {name}: {error}; give {kind.set_help}") from None


def _same_ids(items: Items, others: Items) -> set[str]:
    return {item.id for item in items} & {item.id for item in others}


def _shared(kind: Kind, items: Items, others: Items) -> dict[str, str]:
    """By item id, what the item shares with which tasks of the other set."""
    found = kind.overlap(items, others)
    reasons = {
        "equals": found.same,
        "is of the type of": found.types,
        f"shares a {found.part} with": found.share_a_part,
        "has the id of": tuple((item_id, item_id) for item_id in _same_ids(items, others)),
    }
    shared: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for why, pairs in reasons.items():
        for item_id, other_id in pairs:
            shared[item_id].setdefault(other_id, why)
    return {
        item_id: ", ".join(f"{why} {other_id}" for other_id, why in sorted(others.items()))
        for item_id, others in shared.items()
    }


def _way_out(ids: Sequence[str]) -> str:
    if len(ids) <= MAX_NAMED:
        quoted = ",".join(f"'{item_id}'" for item_id in ids)
        return f'"data.exclude=[{quoted}]"'
    return (
        "data.exclude=FILE, a text file of one id a line; "
        "arcft contamination SET OTHER --json lists what two sets share"
    )


def _rest(number: int) -> str:
    return f"; and {number - MAX_NAMED} more" if number > MAX_NAMED else ""
