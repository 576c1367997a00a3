"""Grammars over a few token ids, for tests of what is written with one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping

END = 60


@dataclasses.dataclass
class Walk:
    """Where one is in an automaton."""

    states: Mapping[int, Mapping[int, int]]
    """For each state the tokens that may come, ascending, and the states that they lead to."""

    state: int = 0

    def __post_init__(self) -> None:
        self.known = {state: tuple(ways) for state, ways in self.states.items()}

    @property
    def choices(self) -> tuple[int, ...]:
        return self.known[self.state]

    def advance(self, token: int) -> None:
        if token not in self.states[self.state]:
            raise ValueError(token)
        self.state = self.states[self.state][token]

    def copy(self) -> Walk:
        return Walk(self.states, self.state)


@dataclasses.dataclass(frozen=True)
class Automaton:
    """State 0 is the beginning, state -1 the end."""

    states: Mapping[int, Mapping[int, int]]
    longest: int = 10_000

    def __call__(self) -> Walk:
        return Walk(self.states)


def random_automaton(seed: int, size: int = 12) -> Automaton:
    """With forced runs, states that share tokens, and an end that may come from some of them."""
    rng = random.Random(seed)
    states: dict[int, dict[int, int]] = {-1: {}}
    for state in range(size):
        count = rng.choice([1, 1, 2, 3, 6])
        tokens = sorted(rng.sample(range(1, 40), count) + ([END] if state % 5 == 4 else []))
        states[state] = {token: -1 if token == END else rng.randrange(size) for token in tokens}
    return Automaton(states)


def table(rows: int, columns: int, cells: tuple[int, ...] = (10, 11, 12, 13, 14)) -> Automaton:
    """A grid of known size: each row begins with its number, 20 and following, and ends with 30; 31 stands in front."""
    states: dict[int, dict[int, int]] = {-1: {}, 0: {31: 1}}
    state = 1
    for row in range(rows):
        for tokens in ((20 + row,), *[cells] * columns, (30,)):
            states[state] = dict.fromkeys(tokens, state + 1)
            state += 1
    states[state] = {END: -1}
    return Automaton(states)
