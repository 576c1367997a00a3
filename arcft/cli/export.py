"""`arcft export`: a checked config, then the export. Loads no model library itself."""

from __future__ import annotations

from omegaconf import DictConfig

from arcft.cli.hydra_app import plain_config, run_from_command_line
from arcft.config.export import ExportConfig
from arcft.config.schema import from_dict
from arcft.runs.export import export


def main() -> None:
    """Export as the command line says."""
    run_from_command_line(_export, "export", ExportConfig)


def _export(cfg: DictConfig) -> None:
    export(from_dict(ExportConfig, plain_config(cfg)))
