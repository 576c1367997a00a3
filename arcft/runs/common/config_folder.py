"""Locate the YAML files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
"""The folder arcft/."""


def config_folder() -> Path:
    """conf/ inside an installed package (arcft/conf), or beside the package in a checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "conf"
