"""What a reader of a study should know about its runs, a sentence or two each."""

from __future__ import annotations

from collections.abc import Sequence

from arcft.reporting.words import count
from arcft.studies.runs import LOSSES, Run
from arcft.studies.settings import Grouping, is_of_one_training, is_of_training
from arcft.studies.statistics import are_enough


def study_notes(grouping: Grouping, metric: str, per_task: bool, runs: Sequence[Run]) -> list[str]:
    """How seeds were counted, what differs beside the settings, and what was left out."""
    notes = []
    seeds = [len(setting.replicates) for setting in grouping.settings]
    if max(seeds) == 1 and per_task:
        notes.append(
            "One seed a setting: the intervals are over tasks only, so they say how these runs differ, not how the "
            "settings do. Another seed may change any of them."
        )
    elif max(seeds) == 1:
        notes.append("One seed a setting, and no value for each task: nothing can be said about noise.")
    elif per_task and len(seeds) > 1 and not are_enough(seeds):
        notes.append(
            "A second seed of one setting is too little to tell how much runs differ, so no difference of settings is "
            "claimed. Add seeds to the others."
        )
    elif min(seeds) == 1 and per_task:
        notes.append("Some settings have one seed: the noise of runs is taken from the others.")
    notes += _replicate_notes(grouping, runs)
    if per_task and all(run.metrics[metric] == 0 for run in runs):
        notes.append(f"{metric} is 0 in all runs; metric= chooses one that differs, e.g. metric=eval_loss.")
    if grouping.along:
        notes.append(f"Changes with the setting: {', '.join(grouping.along)}.")
    if grouping.repeated:
        notes.append(
            f"{count(grouping.repeated, 'run')} left out, because a later one has the same setting and the same seeds."
        )
        if grouping.ignored:
            notes.append(
                f"They differ in {', '.join(grouping.ignored)}, which makes no setting by itself; compare it with "
                f"by={grouping.ignored[0]}."
            )
    if not per_task and metric not in LOSSES:
        lacking = next(run for run in runs if run.scores is None)
        notes.append(
            f"Compared over seeds alone: {lacking.folder} was made by a version that stored no results of single tasks."
        )
    return notes


def _replicate_notes(grouping: Grouping, runs: Sequence[Run]) -> list[str]:
    """What is counted as a seed, where that is not each run."""
    notes = []
    trained = [key for key in grouping.crossed if is_of_training(key, runs[0].job)]
    others = [key for key in grouping.crossed if key not in trained]
    if others:
        notes.append(
            f"Runs of the same training that differ in {', '.join(others)} count as one seed, with their mean."
        )
    if trained:
        notes.append(
            f"Runs that share {' or '.join(trained)} don't vary independently, so they count as one seed, with their "
            "mean. Give each run values of its own, e.g. 0 and 0, 1 and 1, 2 and 2."
        )
    if is_of_one_training(runs) and max(len(one.replicates) for one in grouping.settings) > 1:
        notes.append("All runs evaluate one training run, so what they say holds for that one; another may differ.")
    return notes
