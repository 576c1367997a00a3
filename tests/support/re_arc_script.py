"""scripts/re_arc_pairs.py and re_arc_shards.py as modules, and small task types to generate with them."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

SCRIPTS = ROOT / "scripts"


# They are scripts, of no package; the first imports the second from its own folder.
sys.path.insert(0, str(SCRIPTS))
import re_arc_pairs  # noqa: E402
import re_arc_shards  # noqa: E402


def settings(**changes: Any) -> Any:
    values = {"pairs": 6, "seed": 0, "diff_lb": 0.0, "diff_ub": 1.0, "pair_seconds": 5.0, "task_seconds": 60.0}
    return re_arc_shards.Settings(**(values | changes))


def draw_mirror(rng: random.Random, least: float, greatest: float) -> dict[str, Any]:
    """A grid of up to 30x30, larger where it is to be more difficult, and its mirror image."""
    rows, columns = (max(2, round(30 * rng.uniform(least, greatest))) for _ in range(2))
    grid = tuple(tuple(rng.randrange(10) for _ in range(columns)) for _ in range(rows))
    return {"input": grid, "output": mirror(grid)}


def mirror(grid: Any) -> Any:
    return tuple(row[::-1] for row in grid)


def draw_inverse(rng: random.Random, least: float, greatest: float) -> dict[str, Any]:
    grid = draw_mirror(rng, least, greatest)["input"]
    return {"input": grid, "output": invert(grid)}


def invert(grid: Any) -> Any:
    return tuple(tuple(9 - cell for cell in row) for row in grid)


MAKERS: Mapping[str, Any] = {
    "00d62c1b": (draw_mirror, mirror),
    "007bbfb7": (draw_inverse, invert),
    "017c7c7b": (draw_mirror, mirror),
}


def make(folder: Path, makers: Mapping[str, Any] = MAKERS, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = re_arc_pairs.make_cache(folder, makers, settings(**changes), say=lambda _: None)
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is seen in the folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
