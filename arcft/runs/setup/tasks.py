"""Which tasks a run works on: sources, selection, the held-out share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from arcft.config.data import HELD_OUT, DataConfig
from arcft.protocols import Item, Kind, Problem, ProblemError, ProblemPool, Sources
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.checkpoint_config import TrainedRun
from arcft.runs.setup.disjoint import refuse_shared
from arcft.runs.setup.kinds import kind_of, read_data
from arcft.runs.setup.selection import excluded_ids, select_tasks, split_held_out

CountTokens = Callable[[Problem], int]
Say = Callable[[str], None]


def load_sources(config: DataConfig) -> Sources:
    """Load every source of `config` and keep the chosen task ids, without the excluded ones."""
    loaded = kind_of(config).load(config)
    everything = [item for _, items in loaded for item in items]
    chosen = {item.id for item in select_tasks(everything, task_ids=config.task_ids, limit=None, seed=0)}
    return _only(loaded, chosen - excluded_ids(config.exclude, [item.id for item in everything]))


@dataclasses.dataclass(frozen=True)
class TaskSets:
    """What a run trains on, what it keeps for validation, and what it leaves out."""

    train: Sources
    held_out: list[Problem]
    too_long: list[str]
    leaked: list[str]
    """Ids of tasks that would give away a held-out one: they equal it, or share a part with it."""

    disjoint_from: dict[str, dict[str, Any]]
    """For each set of data.disjoint_from how many tasks it has, and their fingerprint: nothing trained on shares
    anything with them."""

    @property
    def train_ids(self) -> list[str]:
        return [item.id for _, items in self.train for item in items]


def task_sets(config: DataConfig, num_tokens: CountTokens, max_tokens: int | None) -> TaskSets:
    """Load, leave out what is longer than `max_tokens`, apply `limit`, and split off the held-out tasks.

    A held-out task is removed from every source of a mix, with every task that gives it away. A pool has the id of the
    task whose type it is of, and is removed with it; one whose task is only too long stays. Raises ProblemError when
    more than nine tenths are too long, nothing is left, or what is left shares anything with a set of `disjoint_from`.
    """
    kind = kind_of(config)
    sources = load_sources(config)
    if not sources:
        raise ProblemError(_all_excluded(config.exclude))
    too_long = too_long_ids((item for _, items in sources for item in items), num_tokens, max_tokens)
    everything = {(item.id, isinstance(item, ProblemPool)) for _, items in sources for item in items}
    if len(too_long) > 0.9 * len(everything):
        raise ProblemError(
            f"{len(too_long)} of {len(everything)} tasks, more than 90%, take more than {max_tokens} tokens as this "
            "run writes them (prompt and answer); raise training.max_seq_length (or data.max_tokens), choose a shorter "
            "encoder or prompt, or set training.drop_demonstrations=true"
        )
    sources = [
        (weight, [item for item in items if isinstance(item, ProblemPool) or item.id not in too_long])
        for weight, items in sources
    ]
    chosen = select_tasks(_one_of_each(sources), task_ids=None, limit=config.limit, seed=config.seed)
    train_items, held_out_items = split_held_out(chosen, config.held_out, config.seed)
    held_out = [sample_task(item, config.seed) for item in held_out_items]
    train = _only(sources, {item.id for item in train_items})
    leaked = leaking_ids(kind, (item for _, items in train for item in items), held_out)
    if leaked:
        train = _only(train, {item.id for item in train_items} - leaked)
        if not train:
            raise ProblemError("every task left to train on equals a held-out one; set data.held_out=0 or add tasks")
    kept_apart = refuse_shared(kind, [item for _, items in train for item in items], config.disjoint_from)
    return TaskSets(
        train=train,
        held_out=held_out,
        too_long=sorted(too_long),
        leaked=sorted(leaked),
        disjoint_from={
            name: {"tasks": len(items), "fingerprint": kind.fingerprint(items)} for name, items in kept_apart.items()
        },
    )


def _only(sources: Sources, ids: Container[str]) -> Sources:
    """The sources with their items of these ids; a source that has none is dropped."""
    kept = [(weight, [item for item in items if item.id in ids]) for weight, items in sources]
    return [(weight, items) for weight, items in kept if items]


def _one_of_each(sources: Sources) -> list[Item]:
    """What the sources hold, each id once: where a task and a pool have one id, the task, for it is the real one."""
    items = [item for _, group in sources for item in group]
    chosen = {item.id: item for item in items}
    chosen |= {item.id: item for item in items if not isinstance(item, ProblemPool)}
    return list(chosen.values())


def leaking_ids(kind: Kind, items: Iterable[Item], held_out: Iterable[Problem]) -> set[str]:
    """Ids of the items that equal one of `held_out` or share a part with it, or that are pools of its type.

    Sets hold the same problem under several names: ARC-1's training task 40853293 is its evaluation task 070dd51e, and
    so a pool of pairs called 40853293, as in RE-ARC, gives the latter away whatever its pairs are.
    """
    held_out = list(held_out)
    if not held_out:
        return set()
    shared = kind.overlap(items, held_out)
    return {train_id for train_id, _ in shared.same + shared.share_a_part + shared.types}


def too_long_ids(items: Iterable[Item], num_tokens: CountTokens, max_tokens: int | None) -> set[str]:
    """Ids of the tasks that take more than `max_tokens` tokens; pools of pairs are drawn from and never too long."""
    if max_tokens is None:
        return set()
    return {item.id for item in items if not isinstance(item, ProblemPool) and num_tokens(item) > max_tokens}


def sample_task(item: Item, seed: int) -> Problem:
    """The task itself, or one drawn from a pool, always the same for one seed."""
    if not isinstance(item, ProblemPool):
        return item
    return item.draw(np.random.default_rng([seed, *item.id.encode()]))


def _all_excluded(exclude: list[str] | str) -> str:
    shown = exclude if isinstance(exclude, str) else f"[{','.join(exclude[:5])}{',...' if len(exclude) > 5 else ''}]"
    return f"data.exclude={shown}: excludes every task; list fewer ids"


def all_tasks(config: DataConfig) -> list[Problem]:
    """Every task of the source that `config` names, chosen by it or not: what a submission answers."""
    everything = load_sources(dataclasses.replace(config, task_ids=None, exclude=[]))
    return [item for _, items in everything for item in items if not isinstance(item, ProblemPool)]


def chosen_tasks(config: DataConfig, num_tokens: CountTokens | None) -> list[Problem]:
    """The tasks of the source that `config` names, narrowed as it says."""
    return filter_tasks(all_tasks(config), config, num_tokens)


def filter_tasks(
    tasks: Sequence[Problem], asked: DataConfig, num_tokens: CountTokens | None, say: Say = lambda words: None
) -> list[Problem]:
    """Those of `tasks` that `asked` selects: by id, at most `max_tokens` long, at most `limit` of them.

    `say` is told how many are too long: a score on the others is none of the whole set.
    """
    kept = select_tasks(tasks, task_ids=asked.task_ids, limit=None, seed=asked.seed)
    excluded = excluded_ids(asked.exclude, [task.id for task in tasks])
    kept = [task for task in kept if task.id not in excluded]
    if not kept:
        raise ProblemError(_all_excluded(asked.exclude))
    if asked.max_tokens is not None:
        if num_tokens is None:
            raise ProblemError("data.max_tokens has no effect with predictions=, where there is no tokenizer; drop it")
        too_long = too_long_ids(kept, num_tokens, asked.max_tokens)
        kept = [task for task in kept if task.id not in too_long]
        if not kept:
            raise ProblemError(f"data.max_tokens={asked.max_tokens}: every task is longer; raise it")
        if too_long:
            number = len(kept) + len(too_long)
            say(f"data.max_tokens={asked.max_tokens}: {len(too_long)} of {number} tasks are longer, and left out")
    return select_tasks(kept, task_ids=None, limit=asked.limit, seed=asked.seed)


def tasks_of_run(run: TrainedRun) -> list[Problem]:
    """What `run` kept for validation, or the tasks it was adapted to."""
    ids = run.tasks.get("adapted_to") or run.tasks.get("held_out")
    if not ids:
        raise ProblemError(
            f"{run.checkpoint.path}: its run held out no task; name the tasks to evaluate, e.g. data=arc1 "
            "data.split=evaluation"
        )
    return tasks_named(run, ids)


def tasks_named(run: TrainedRun, ids: Sequence[str]) -> list[Problem]:
    """The tasks of the run's data with these ids; of a pool of many pairs, the task that the run drew from it."""
    return tasks_with_ids(run.config.data, ids)


def tasks_with_ids(data: DataConfig, ids: Sequence[str]) -> list[Problem]:
    """The tasks of a source with these ids; of a pool of many pairs, the task that a run of `data` drew from it."""
    return [sample_task(item, data.seed) for item in _one_of_each(_sources_with_ids(data, ids))]


def items_named(run: TrainedRun, ids: Sequence[str]) -> list[Item]:
    """All tasks and pools of the run's data with these ids."""
    return [item for _, items in _sources_with_ids(run.config.data, ids) for item in items]


def _sources_with_ids(data: DataConfig, ids: Sequence[str]) -> Sources:
    # What was excluded is among no ids of a run, and a file that names it may be elsewhere by now.
    return load_sources(dataclasses.replace(data, task_ids=list(ids), exclude=[]))


def default_held_out(kind: Kind, num_tokens: CountTokens, max_tokens: int) -> list[Problem]:
    """What train.py's default data would keep for validation: so a base model is measured on the same tasks.

    Raise ProblemError where those are of another kind.
    """
    data = default_data()
    if data.kind != kind.name:
        raise ProblemError(
            f"data.name={HELD_OUT}: without a run, the held-out tasks are those of train's default data, of kind "
            f"{data.kind}; name the problems of kind {kind.name} to evaluate"
        )
    return task_sets(data, num_tokens, max_tokens).held_out


def default_data() -> DataConfig:
    """Those of train.py."""
    values = OmegaConf.to_container(OmegaConf.load(config_folder() / "data" / "arc1.yaml"), resolve=True)
    return read_data(values)  # type: ignore[arg-type]
