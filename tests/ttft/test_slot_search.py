"""How ttft.slots=auto comes to a number, with a device of which the speed is known."""

from __future__ import annotations

import pytest

from arcft.ttft.engine.slot_autotune import MOST, PAIRS, WAITING, SlotSearch


def search_on(seconds: dict[int, float], noise: list[float] | None = None) -> tuple[SlotSearch, list[tuple[int, int]]]:
    """SlotSearch on a device that needs `seconds` for a pass of so many slots of 100 tokens each."""
    search, passes = SlotSearch(), []
    while search.choice is None:
        first, count = search.next()
        assert first + count <= search.units_needed
        slow = noise[len(passes) % len(noise)] if noise else 1.0
        passes.append((first, count))
        search.record(100 * count, seconds[count] * slow)
    return search, passes


@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),
        ({1: 1.0, 2: 1.92, 4: 3.0, 8: 4.0}, 1),
        ({1: 1.0, 2: 1.9, 4: 3.8, 8: 7.6}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 2.4}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),
    ],
)
def test_more_slots_are_chosen_only_where_they_pay(seconds: dict[int, float], choice: int) -> None:
    search, _ = search_on(seconds)
    assert search.choice == choice


def test_all_slots_advance_alike_and_the_first_pair_is_not_counted() -> None:
    search, passes = search_on({1: 1.0, 2: 2.0})
    assert len(passes) == 2 * (PAIRS + 1)
    assert passes[:4] == [(0, 2), (1, 1), (0, 2), (0, 1)]
    assert [passes.count((slot, 1)) for slot in (0, 1)] == [3, 3]
    assert search.words() == "2 are 1.00 times as fast as 1"


def test_a_pass_that_was_held_up_decides_nothing() -> None:
    # Every fifth pass takes ten times as long, whichever it is.
    search, _ = search_on({1: 1.0, 2: 1.0, 4: 2.0, 8: 4.0}, noise=[1, 1, 1, 1, 10])
    assert search.choice == 2


def test_without_enough_units_the_choice_is_what_is_known() -> None:
    search = SlotSearch()
    search.stop()
    assert search.choice == 1
    search = SlotSearch()
    for _ in range(PAIRS):
        for _ in range(2):
            _, count = search.next()
            search.record(100 * count, 1.0)
    assert search.choice is None
    search.stop()
    assert search.choice == 2
    search.stop(at_most=1)
    assert search.choice == 1


def test_the_search_waits_for_units_but_not_for_long() -> None:
    search = SlotSearch()
    for _ in range(2):
        for _ in range(WAITING):
            search.wait()
        assert (search.choice, search.next()) == (None, (0, 2))
        # Enough for once: the waiting begins anew.
        search.record(200, 1.0)
        assert search.next() == (1, 1)
    for _ in range(WAITING + 1):
        search.wait()
    assert search.choice == 1


def test_a_search_may_begin_where_another_ended() -> None:
    search = SlotSearch(2)
    assert (search.next(), search.units_needed) == ((0, 4), 4)
    search.stop()
    assert search.choice == 2


def test_the_search_ends_at_the_most() -> None:
    search, passes = search_on(dict.fromkeys((1, 2, 4, 8), 1.0))
    assert search.choice == MOST == max(count for _, count in passes)
    # No more units are asked for than that.
    assert search.units_needed == MOST
