"""Build an engine for test-time fine-tuning from a config, and units of work from tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from arcft.config.schema import ConfigError
from arcft.config.ttft import SplitConfig, TtftConfig, WholeSetConfig
from arcft.models.stacked_lora import StackedLora
from arcft.protocols import Problem
from arcft.runs.adaptation.adapters import AdapterSaver
from arcft.runs.adaptation.base_model import AdaptationBase, ask_builder, learn_builder, learning_rate, load_start
from arcft.runs.setup.build import choose_device, view_dealer
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.tasks import CountTokens
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.ttft.engine.engine import Engine
from arcft.ttft.engine.memory_ladder import MemorySettings
from arcft.ttft.engine.slot import Save
from arcft.ttft.engine.slot_autotune import resolve_slots
from arcft.ttft.units import Unit


def engine_factory(settings: TtftSettings, folder: Path, memory: MemorySettings | None = None) -> Callable[[], Engine]:
    """A picklable function that builds an engine, here or in a worker; see `build_engine`."""
    return partial(build_engine, settings, folder, memory)


def build_engine(settings: TtftSettings, folder: Path, memory: MemorySettings | None = None) -> Engine:
    """Load base model, adapter and text format; `folder` is the evaluation's, for adapters that are kept.

    `memory` holds the settings that an earlier engine of the same evaluation ended with. Raises ArcftError where the
    checkpoint, its base model or the adapter is missing or damaged.
    """
    start = load_start(settings)
    ttft = settings.ttft
    slots = memory.slots if memory is not None else slots_here(ttft)
    return engine_on(
        settings,
        start,
        StackedLora(start.adapted, slots if isinstance(slots, int) else 1),
        save=AdapterSaver(settings, start, folder) if ttft.keep_adapters else None,
        memory=memory,
    )


def engine_on(
    settings: TtftSettings,
    start: AdaptationBase,
    stacked: StackedLora,
    *,
    save: Save | None,
    memory: MemorySettings | None = None,
) -> Engine:
    """An engine on a loaded model; `save` is called for each adapted unit."""
    config = settings.config
    kind = kind_of(config.data)
    learn = learn_builder(settings, start.tokenizer)
    return Engine(
        stacked,
        learn,
        ask_builder(settings, start.tokenizer),
        config=settings.ttft,
        inference=config.inference,
        num_views=config.selection.scoring_augmentations,
        own=kind.own_examples(learn.format),
        questions=kind.sampler(config.augmentation, learn.format, view="leave_one_out"),
        deal_views=view_dealer(kind, config.inference),
        learning_rate=learning_rate(settings),
        pad_id=start.pad_id,
        save=save,
        memory=memory,
    )


def slots_here(config: TtftConfig) -> int | Literal["auto"]:
    """ttft.slots on this machine."""
    return resolve_slots(config.slots, choose_device().type)


def make_units(config: TtftConfig, tasks: Sequence[Problem], num_tokens: CountTokens) -> list[Unit]:
    """Units of work from tasks: each alone, all together, or divided into `splits` groups; ConfigError if too few."""
    if isinstance(config, WholeSetConfig):
        groups = [("whole_set", list(tasks))]
    elif isinstance(config, SplitConfig):
        splits = config.splits
        if splits > len(tasks):
            raise ConfigError([f"ttft.splits={splits}: there are only {len(tasks)} tasks; at most one group for each"])
        groups = [(f"split-{number}", list(tasks[number::splits])) for number in range(splits)]
    else:
        groups = [(task.id, [task]) for task in tasks]
    return [Unit(name=name, problems=tuple(members), length=max(map(num_tokens, members))) for name, members in groups]
