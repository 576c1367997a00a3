"""Texts for the parsers of all encoders: real answers, broken ones, and noise."""

from __future__ import annotations

import random

import numpy as np
import yaml

from arcft.problems.arc.format.encoders import COLOR_NAMES, SYMBOLS, GridEncoder, build_encoder
from arcft.problems.arc.task import MAX_SIDE, Grid
from arcft.protocols import AnswerError
from arcft.runs.common.config_folder import config_folder
from fuzzing.core import WrongError

MORE_ENCODERS = (
    {"name": "RepeatNumberEncoder", "n": 2},
    {"name": "GridWithSeparationEncoder", "separator": "`"},
    {
        "name": "GridCodeBlockEncoder",
        "base": {"name": "RowNumberEncoder", "start": 0, "base": {"name": "ColorNameEncoder"}},
    },
    {
        "name": "RowNumberEncoder",
        "base": {"name": "ReplaceNumberEncoder", "base": {"name": "GridWithSeparationEncoder", "separator": "x"}},
    },
)
"""Combinations that no file of conf/encoder has."""

STRANGE = "٠١९²½１Ⅷ𝟘\u200b\ufeff\u0308\u2028\x85\x00\x1b\r\t\v\ud800\udfff😀"
"""Digits of other scripts, invisible characters, line ends, control characters, lone surrogates."""

ALPHABET = "0123456789" * 3 + "\n\n\n   ```|x" + SYMBOLS + STRANGE + "gridshape:-+_.,ABab"
GRIDS = 300
LONG = 200_000


class Texts:
    """Every text goes to every encoder: an AnswerError, or a grid that is written as exactly this text."""

    seconds_per_case = 3.0

    def __init__(self) -> None:
        nodes = [yaml.safe_load(path.read_text())["grid"] for path in sorted((config_folder() / "encoder").glob("*"))]
        self.encoders = [build_encoder(node) for node in [*nodes, *MORE_ENCODERS]]
        rng = np.random.default_rng(0)
        # Mostly small, as their texts take less time; every mistake in a large one can be made in a small one.
        sides = [1, 1, 2, 2, 3, 3, 4, 5, 8, MAX_SIDE]
        grids = [
            rng.integers(0, 10, rng.choice(sides, 2, p=[0.105] * 9 + [0.055]), dtype=np.int8) for _ in range(GRIDS)
        ]
        self.written = [[(encoder.to_text(grid), grid) for grid in grids] for encoder in self.encoders]

    def case(self, rng: random.Random) -> str:
        chosen = rng.randrange(len(self.encoders))
        text, grid = rng.choice(self.written[chosen])
        kind = rng.random()
        if kind < 0.1:
            found = self._read(self.encoders[chosen], text)
            if found is None or not np.array_equal(found, grid):
                raise WrongError(f"{self.encoders[chosen]} does not read back its own {text!r}")
        elif kind < 0.7:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                text = mutated(text, rng)
        elif kind < 0.9995:
            text = "".join(rng.choices(ALPHABET, k=int(rng.expovariate(0.05))))
        else:
            text = (rng.choice(ALPHABET) if rng.random() < 0.5 else text + "\n") * (LONG // (len(text) + 1) + 1)
        accepted = [self._read(encoder, text) is not None for encoder in self.encoders]
        return "accepted" if any(accepted) else "refused"

    @staticmethod
    def _read(encoder: GridEncoder, text: str) -> Grid | None:
        """The grid in `text`, or in what follows the encoder's opener; None where both are refused."""
        for whole in {text, text if text.startswith(encoder.opener) else encoder.opener + text}:
            try:
                grid = encoder.to_grid(whole)
            except AnswerError:
                continue
            if encoder.to_text(grid) != whole:
                raise WrongError(f"{encoder} reads {whole[:300]!r} as {grid.tolist()}")
            return grid
        return None


def mutated(text: str, rng: random.Random) -> str:
    """`text` with one small change."""
    place = rng.randrange(len(text) + 1)
    other = rng.randrange(len(text) + 1)
    low, high = min(place, other), max(place, other)
    match rng.randrange(12):
        case 0:
            return text[:place] + rng.choice(ALPHABET) + text[place:]
        case 1:
            return text[:place] + rng.choice(ALPHABET) + text[place + 1 :]
        case 2:
            return text[:place] + text[place + 1 :]
        case 3:
            return text[:low] + text[high:]
        case 4:
            return text[:high] + text[low:high] + text[high:]
        case 5:
            return text[:place]
        case 6:
            return text[place:]
        case 7:
            return text + rng.choice(("\n", " ", "\n\n", "```", "\r\n", "\x00", "0", "\nThat is all."))
        case 8:
            return rng.choice((" ", "\n", "```grid\n", "\ufeff")) + text
        case 9:
            return text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", " \n", "\u2028")))
        case 10:
            return text.swapcase() if rng.random() < 0.5 else text.replace(" ", rng.choice(("  ", "\t", "\u00a0")))
        case _:
            lines = text.split("\n")
            rng.shuffle(lines)
            return "\n".join([*lines, rng.choice(COLOR_NAMES)] if rng.random() < 0.1 else lines)
