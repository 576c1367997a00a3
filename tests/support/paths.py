"""Where the checkout and the fixtures lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
ARCHITECTURES = SUPPORT / "architectures"
GOLDEN = SUPPORT / "golden"
