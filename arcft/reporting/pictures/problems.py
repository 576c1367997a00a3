"""Pictures of problems: tests with their attempts, one whole problem, and solved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arcft.protocols import Answer, Card, Problem
from arcft.reporting.outcomes import SOLVED, is_right, right_attempt
from arcft.reporting.pictures.tiles import Tile, draw_page, draw_problem, panel, tiles_of_problem
from arcft.scoring.voting import Attempts


def predictions_picture(
    path: Path | str, problems: Sequence[Problem], attempts: Attempts, card: Card, *, shown: int, count: int
) -> None:
    """Write a PNG of the first `count` tests of `problems`: question, true output where it is known, and the first
    `shown` attempts."""
    tiles = [
        tile
        for problem in problems
        for tile in tiles_of_problem(problem, attempts_at(problem, attempts), card, shown=shown)
    ]
    if not tiles or count < 1:
        raise ValueError("no tests to draw")
    draw_page(tiles[:count]).save(path, optimize=True)


def problem_picture(path: Path | str, problem: Problem, attempts: Attempts, card: Card, *, shown: int) -> None:
    """Write a PNG of one problem: its demonstrations, and for each test the question, the true output if known, and
    the first `shown` attempts."""
    draw_problem(problem, attempts_at(problem, attempts), card, shown=shown).save(path, optimize=True)


def showcase_picture(path: Path | str, problems: Sequence[Problem], attempts: Attempts, card: Card) -> None:
    """Write a PNG of solved problems: for each test a demonstration, the question, predicted and true output."""
    tiles = []
    for problem in problems:
        demonstrations = [
            part
            for given, output in card.demonstrations(problem)[:1]
            for part in (panel(card, "demonstration", given), panel(card, "its output", output))
        ]
        for index, (truth, own) in enumerate(zip(problem.answers, attempts_at(problem, attempts), strict=True)):
            predicted = right_attempt(truth, own)
            panels = [
                *demonstrations,
                panel(card, "input", card.question(problem, index)),
                panel(card, "predicted", predicted, None if predicted is None else is_right(predicted, truth)),
                panel(card, "true output", truth),
            ]
            tiles.append(Tile(problem.id, SOLVED.color, panels))
    draw_page(tiles, box=120).save(path, optimize=True)


def attempts_at(problem: Problem, attempts: Attempts) -> list[Sequence[Answer]]:
    """The attempts at each test of `problem`."""
    return [attempts.get((problem.id, index), ()) for index in range(len(problem.answers))]
