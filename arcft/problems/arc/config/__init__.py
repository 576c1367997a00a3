"""The config groups that ARC brings."""

from __future__ import annotations

from collections.abc import Mapping

from arcft.problems.arc.config.augmentation import AugmentationConfig
from arcft.problems.arc.config.data import ArcDataConfig
from arcft.problems.arc.config.encoder import EncoderConfig
from arcft.problems.arc.config.prompt import PromptConfig

CONFIGS: Mapping[str, type] = {
    "data": ArcDataConfig,
    "encoder": EncoderConfig,
    "prompt": PromptConfig,
    "augmentation": AugmentationConfig,
}
