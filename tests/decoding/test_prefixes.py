"""Common beginnings, against comparing every pair."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.decoding.core.prefix_sharing import Prefixes

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=12)


def common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.data())
def test_the_nearest_has_most_in_common(sequences: list[list[int]], data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 1), min_size=len(sequences), max_size=len(sequences)))
    number, *others = data.draw(st.permutations(range(len(sequences))))
    prefixes = Prefixes(sequences, owners)
    lengths = {
        other: common(sequences[number], sequences[other]) if owners[other] == owners[number] else 0 for other in others
    }
    assert {other: prefixes.common(number, other) for other in others} == lengths
    some = others[: data.draw(st.integers(0, len(others)))]
    nearest, length = prefixes.nearest(number, sorted(some, key=prefixes.rank.__getitem__))
    assert length == max((lengths[other] for other in some), default=0)
    assert lengths[nearest] == length if some else nearest == -1


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_families_hold_each_sequence_once_and_the_longest_comes_first(sequences: list[list[int]]) -> None:
    families = Prefixes(sequences).families()
    assert sorted(number for family in families for number in family) == list(range(len(sequences)))
    longest = [max(len(sequences[number]) for number in family) for family in families]
    assert longest == sorted(longest, reverse=True)


def test_a_family_has_half_of_its_length_in_common() -> None:
    sequences = [[1, 2, 3, 4, 5, 6], [9, 9], [1, 2, 3, 4, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 7]]
    assert Prefixes(sequences).families() == [[3], [2, 0, 4], [1]]
    assert Prefixes(sequences, [0, 0, 0, 0, 1]).families() == [[3], [2, 0], [4], [1]]
