"""`arcft evaluate`, `python evaluate.py`: a checked config, then the evaluation. Loads no model library itself."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcft.cli.hydra_app import explicit_keys, plain_config, run_from_command_line
from arcft.cli.resume import resumed_config
from arcft.config.run import EvaluateConfig
from arcft.runs.common.optimized_metric import value_of
from arcft.runs.common.paths import absolute
from arcft.runs.evaluate import evaluate
from arcft.runs.setup.kinds import read_config


def main() -> None:
    """Evaluate as the command line says."""
    run_from_command_line(_evaluate, "evaluate", EvaluateConfig)


def _evaluate(cfg: DictConfig) -> float | None:
    values = plain_config(cfg)
    explicit = explicit_keys()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if values["resume"] is None:
        config = read_config(EvaluateConfig, values)
    else:
        folder = Path(absolute(str(values["resume"])))
        config = resumed_config(EvaluateConfig, "evaluate", folder, values, explicit)
        explicit = {key: text for key, text in explicit.items() if key.startswith("ttft.")}
    metrics = evaluate(config, folder, explicit=list(explicit))
    if config.dry_run:
        return None
    return value_of(config.optimized_metric, metrics, "choose data whose answers are known")
