"""Selecting again from predictions that were made before: what their file must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.console import Console

from arcft.config.inference import SelectionConfig
from arcft.config.schema import ConfigError
from arcft.reporting.words import count
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.voting import grid_key

console = Console()


def check_scores(
    groups: Mapping[TestKey, Sequence[Prediction]], selection: SelectionConfig, explicit: Collection[str], name: str
) -> None:
    """Raise ConfigError where selection=score would have nothing to go by, or less than `explicit` keys ask for.

    `groups` are the predictions of each test, `name` is where they come from. Says how many tests have grids without
    scores, where others have some.
    """
    open_groups = [group for group in groups.values() if _has_choice(group)]
    scored = [[one for one in group if one.scores is not None] for group in open_groups]
    if open_groups and not any(scored):
        raise ConfigError(
            [
                f"selection=score: no prediction of {name} has scores to go by; predict with checkpoint=RUN "
                "selection=score, which keeps them, or use selection=vote or selection=verify"
            ]
        )
    most = max((len(one.scores) for group in scored for one in group if one.scores is not None), default=0)
    if scored and "selection.views" in explicit and (selection.views or 0) > most:
        raise ConfigError(
            [
                f"selection.views={selection.views}: the predictions of {name} were scored under at most "
                f"{count(most, 'augmentation')}; ask for no more, or predict with checkpoint=RUN and these"
            ]
        )
    partly = sum(_without_scores(group) > 0 for group in open_groups)
    if partly:
        console.print(
            f"[yellow]note:[/] in {partly} of {count(len(groups), 'test')} some grids have no scores: they come after "
            "those that have",
            highlight=False,
            soft_wrap=True,
        )


def _has_choice(group: Sequence[Prediction]) -> bool:
    return len({grid_key(one.grid) for one in group if one.grid is not None}) > 1


def _without_scores(group: Sequence[Prediction]) -> int:
    """Different grids that no prediction has scores for."""
    grids = {grid_key(one.grid) for one in group if one.grid is not None}
    return len(grids - {grid_key(one.grid) for one in group if one.grid is not None and one.scores is not None})
