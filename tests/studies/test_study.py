"""From runs to settings, rows, sentences and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from arcft.problems.arc.scoring.metrics import METRICS, ArcMetrics
from arcft.studies.chart import _draw_lines, study_png
from arcft.studies.runs import Run, Scores
from arcft.studies.settings import StudyError, find_setting, group, join_evaluations, shown
from arcft.studies.study import Interval, Study, compare
from arcft.studies.tables import csv_text, json_content, markdown
from arcft.studies.words import difference_words, plan, verdict
from tests.support.study_runs import simulate, task_ids


def run_of(
    changes: Mapping[str, Any],
    solved: Sequence[float],
    *,
    candidates: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    **fields: Any,
) -> Run:
    """A finished run with these values of vote_2 and pass_n."""
    config: dict[str, Any] = {"lora.r": 16, "lora.alpha": 16, "scheduler.name": "linear"}
    config |= {"training.seed": 0, "tracking.mode": "x"}
    ids = tuple(names or task_ids(len(solved)))
    values = np.zeros((len(ids), len(METRICS)), dtype=np.float32)
    values[:, METRICS.index("vote_2")] = solved
    values[:, METRICS.index("pass_n")] = solved if candidates is None else candidates
    digits = {
        name: {task: str(int(one)) for task, one in zip(ids, values[:, METRICS.index(name)], strict=True)}
        for name in ("vote_2", "pass_n")
    }
    means = {name: float(values[:, index].mean()) for index, name in enumerate(METRICS)}
    given: dict[str, Any] = {
        "folder": Path("/runs") / "-".join(f"{key}={value}" for key, value in changes.items()),
        "job": "train",
        "state": "finished",
        "config": config | dict(changes),
        "metrics": means | {"eval_loss": 1.0, "loss": 0.9},
        "scores": Scores(ids, METRICS, values, digits),
        "costs": {"seconds": 90.0, "peak_bytes": 2**30},
    }
    return Run(**given | fields)


def ranks(*, seeds: int = 3, gain: float = 0.0, tasks: int = 400, seed: int = 0) -> list[Run]:
    """A sweep over three ranks; the first is worse by `gain`."""
    scores = simulate(
        np.random.default_rng(seed), studies=1, settings=3, seeds=seeds, tasks=tasks, noise=0.01, gain=gain
    )[0]
    return [
        run_of({"lora.r": r, "lora.alpha": r, "training.seed": seed}, scores[index, seed])
        for index, r in enumerate((64, 16, 256))
        for seed in range(seeds)
    ]


def study_of(runs: Sequence[Run], **options: Any) -> Study:
    given: dict[str, Any] = {"metric": None, "baseline": None, "tasks": "all"} | options
    by, over = given.pop("by", None), given.pop("over", None)
    return compare(group(runs, by, over), ArcMetrics(), **given)


def test_what_differs_makes_the_settings() -> None:
    found = group(ranks(), None, None)
    assert (found.by, found.over, found.along) == (("lora.r",), ("training.seed",), ("lora.alpha",))
    assert [one.label for one in found.settings] == ["lora.r=16", "lora.r=64", "lora.r=256"]
    assert [[run.config["training.seed"] for run in one.runs] for one in found.settings] == [[0, 1, 2]] * 3


def test_two_keys_that_differ_apart_are_both_kept() -> None:
    runs = [
        run_of({"lora.r": r, "scheduler.name": name, "scheduler.num_cycles": 3 if name == "cosine" else None}, [1, 0])
        for r in (16, 64)
        for name in ("linear", "cosine")
    ]
    found = group(runs, None, None)
    assert set(found.by) == {"lora.r", "scheduler.name"}
    assert found.along == ("scheduler.num_cycles",)
    assert find_setting(found, "lora.r=64 scheduler.name=cosine").values == find_setting(
        found, "scheduler.name=cosine lora.r=64"
    ).values  # fmt: skip
    with pytest.raises(StudyError, match=r"^baseline=64: names 2 settings; the settings are: "):
        find_setting(found, "64")
    with pytest.raises(StudyError, match=r"^baseline=32: names no setting; the settings are: "):
        find_setting(found, "32")


def test_how_a_run_is_recorded_makes_no_setting() -> None:
    runs = [run_of({"tracking.mode": mode, "training.num_workers": 1}, [1, 0]) for mode in ("online", "offline")]
    found = group(runs, None, None)
    assert found.by == ()
    assert [one.label for one in found.settings] == ["all runs"]


def test_the_later_of_two_equal_runs_counts() -> None:
    old, new = run_of({}, [0, 0], finished_at=1.0), run_of({}, [1, 1], finished_at=2.0)
    for runs in ([old, new], [new, old]):
        found = group(runs, None, None)
        assert found.repeated == 1
        assert found.settings[0].runs == [new]
    assert study_of([old, new]).notes[-1].startswith("1 run left out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["lora.rank"]}, "by=lora.rank: no run has this key; did you mean lora.r"),
        ({"over": ["seed"]}, "over=seed: no run has this key; keys are written as in run.yaml"),
        ({"by": ["scheduler.name"]}, "runs of one setting differ in lora.r, lora.alpha too; add these to by=, or"),
        ({"metric": "vote_3"}, "metric=vote_3: there is no such metric; all runs have accuracy, correct_pixels"),
        ({"metric": "seconds"}, "metric=seconds: a cost is shown, but not compared; all runs have accuracy"),
        ({"baseline": "17"}, "baseline=17: names no setting; the settings are: lora.r=16; lora.r=64; lora.r=256"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as error:
        study_of(ranks(seeds=2), **options)
    assert message in str(error.value)


def test_runs_of_different_tasks() -> None:
    runs = [run_of({"lora.r": 1}, [1, 0], names=["a", "b"]), run_of({"lora.r": 2}, [1, 1, 1], names=["b", "c", "d"])]
    with pytest.raises(StudyError) as error:
        study_of(runs)
    assert str(error.value) == (
        "runs of different tasks: /runs/lora.r=1 answered 2, /runs/lora.r=2 3, and only /runs/lora.r=2 answered c; "
        "compare the 1 that all have answered with tasks=shared, or name only some of the runs"
    )
    study = study_of(runs, tasks="shared")
    assert study.num_tasks == 1
    assert [row.value.value for row in study.rows] == [0, 1]
    assert study.rows[1].difference is not None
    assert study.rows[1].difference.value == 1
    with pytest.raises(StudyError, match=r"^tasks=shared: no task was answered by all runs"):
        study_of([runs[0], run_of({"lora.r": 2}, [1], names=["z"])], tasks="shared")


def test_a_large_difference_is_claimed_and_the_best_is_bold() -> None:
    runs = ranks(seeds=5, gain=-0.15)
    study = study_of(runs, baseline="64")
    assert {row.setting.label for row in study.rows if row.is_claimed} == {"lora.r=16", "lora.r=256"}
    assert [row.is_best for row in study.rows] == [False, True, False]
    assert verdict(study).startswith("lora.r=16 (-1")
    assert verdict(study).endswith(" are worse than lora.r=64. lora.r=64 is the best of all.")
    assert "| **64** | **5** | **" in markdown(study, [], None)
    # The other two are equal, so neither is the best of them.
    others = study_of([run for run in runs if run.config["lora.r"] != 64])
    assert not any(row.is_best or row.is_claimed for row in others.rows)


def test_noise_is_called_noise() -> None:
    study = study_of(ranks())
    assert not any(row.is_claimed or row.is_best for row in study.rows)
    assert verdict(study).startswith(
        "No setting differs from lora.r=16 by more than noise. The best, lora.r=256, is at +1"
    )
    assert verdict(study).endswith(" after correction for 2 comparisons).")
    assert plan(study).startswith("With 400 tasks and 3 seeds a setting, a true difference of ")
    assert " points is found in 80% of studies; to find 2 points takes " in plan(study)
    assert "**" not in markdown(study, [], None)


def test_one_seed_is_said_to_be_one() -> None:
    study = study_of(ranks(seeds=1))
    assert study.notes[0].startswith("One seed a setting: the intervals are over tasks only")
    assert plan(study).endswith("before it is known how much runs differ: train 3 or more seeds of each setting.")
    unequal = study_of([run for run in ranks() if run.config["lora.r"] != 64 or run.config["training.seed"] == 0])
    assert plan(unequal).startswith("With 400 tasks and 3 seeds in every setting, a true difference of ")


@pytest.mark.parametrize("seeds", [(1, 1, 1), (1, 1, 2)])
def test_too_few_seeds_claim_nothing(seeds: Sequence[int]) -> None:
    """Not even for half of all tasks more: these are differences of runs."""
    rng = np.random.default_rng(0)
    runs = [
        run_of({"lora.r": r, "training.seed": seed}, (rng.random(400) < chance).astype(float).tolist())
        for r, chance, number in zip((16, 64, 256), (0.5, 0.97, 0.01), seeds, strict=True)
        for seed in range(number)
    ]
    study = study_of(runs)
    assert not any(row.is_claimed or row.is_best for row in study.rows)
    said = verdict(study)
    assert said.startswith("This run of lora.r=64 (+")
    assert ") had a higher vote_2 than this run of lora.r=16; " in said
    assert said.endswith(
        "had a lower vote_2 than this run of lora.r=16. That is a difference of runs; it takes more seeds to say "
        "whether the settings differ."
    )
    assert ("These runs of lora.r=256" in said) == (seeds[-1] == 2)
    assert "**" not in markdown(study, [], None)
    assert "bold" not in markdown(study, [], None)
    assert study.notes[0].startswith("One seed" if max(seeds) == 1 else "A second seed of one setting is too little")


def evaluations(trainings: int, each: int, *, ranks: Sequence[int] = (16, 64)) -> list[Run]:
    """Each training run is evaluated with several inference.seed."""
    rng = np.random.default_rng(0)
    return [
        run_of(
            {"lora.r": r, "training.seed": seed, "inference.seed": other},
            (rng.random(50) < 0.3).astype(float).tolist(),
            job="evaluate",
            trained_in=Path(f"/runs/{r}-{seed}"),
        )
        for r in ranks
        for seed in range(trainings)
        for other in range(each)
    ]


def test_evaluations_of_one_training_run_are_one_replicate() -> None:
    study = study_of(evaluations(3, 5))
    assert (study.grouping.by, study.grouping.over) == (("lora.r",), ("training.seed", "inference.seed"))
    assert (study.seeds, [len(row.setting.runs) for row in study.rows]) == ([3, 3], [15, 15])
    first = study.rows[0]
    assert first.by_seed[0] == pytest.approx(np.mean([run.metrics["vote_2"] for run in first.setting.runs[:5]]))
    assert study.notes[0] == (
        "Runs of the same training that differ in inference.seed count as one seed, with their mean."
    )
    alone = study_of(evaluations(1, 5))
    assert (alone.seeds, alone.can_claim) == ([1, 1], False)
    assert [one["replicate"] for one in json_content(study, [])["settings"][0]["runs"]] == [0] * 5 + [1] * 5 + [2] * 5


def test_ways_to_evaluate_one_training_run_are_compared_over_their_seeds() -> None:
    runs = [
        dataclasses.replace(run, config={**run.config, "lora.r": 16, "inference.temperature": run.config["lora.r"]})
        for run in (dataclasses.replace(one, trained_in=Path("/runs/1")) for one in evaluations(1, 3))
    ]
    study = study_of(runs)
    assert (study.grouping.by, study.seeds) == (("inference.temperature",), [3, 3])
    assert "All runs evaluate one training run, so what they say holds for that one; another may differ." in study.notes


@pytest.mark.parametrize(
    ("seeds", "replicates"),
    [
        ([(0, 0), (0, 1), (1, 0), (1, 1)], 1),
        ([(0, 0), (1, 1), (2, 2)], 3),
        ([(0, 0), (0, 1), (0, 2)], 3),
        ([(0, 0), (0, 1), (1, 2), (1, 3)], 2),
    ],
)
def test_runs_that_share_a_seed_are_one_replicate(seeds: Sequence[tuple[int, int]], replicates: int) -> None:
    runs = [
        run_of({"lora.r": r, "model.seed": one, "training.seed": two}, [1, 0, 1])
        for r in (16, 64)
        for one, two in seeds
    ]
    study = study_of(runs)
    assert study.seeds == [replicates] * 2
    assert any("Give each run values of its own" in one for one in study.notes) == (replicates != len(seeds))


def test_generations_of_the_same_training_are_one_replicate() -> None:
    runs = [run_of({"lora.r": r, "inference.seed": seed}, [1, 0, 1]) for r in (16, 64) for seed in range(3)]
    assert study_of(runs).seeds == [1, 1]


def test_a_best_loss_of_one_seed_is_no_claim() -> None:
    losses = {16: [1.0, 1.1], 64: [1.05, 1.15], 256: [0.5]}
    runs = [
        run_of({"lora.r": r, "training.seed": seed}, [0, 1], metrics={"eval_loss": loss})
        for r, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    study = study_of(runs, metric="eval_loss")
    assert verdict(study) == (
        "lora.r=256 has the best eval_loss, but has one seed, so whether that is more than noise can't be said. No "
        "other setting differs from lora.r=16 by more than noise."
    )
    assert verdict(study) in markdown(study, [], None)


def test_a_metric_that_some_runs_lack_is_left_out() -> None:
    """Task rows of another version have fewer metrics."""
    new, old = run_of({"lora.r": 16}, [1, 0]), run_of({"lora.r": 64}, [1, 1])
    assert old.scores is not None
    kept = tuple(name for name in METRICS if name != "vote_1")
    values = old.scores.values[:, [METRICS.index(name) for name in kept]]
    old = dataclasses.replace(old, scores=dataclasses.replace(old.scores, metrics=kept, values=values))
    study = study_of([new, old])
    assert [row.value.value for row in study.rows] == [0.5, 1]
    with pytest.raises(StudyError, match=r"^metric=vote_1: /runs/lora\.r=64 has no value of it; all runs have "):
        study_of([new, old], metric="vote_1")


def test_checkpoints_of_unknown_training_are_settings() -> None:
    runs = [
        run_of({"checkpoint": name, "inference.max_new_tokens": limit}, [1, 0], job="evaluate")
        for name in ("/a", "/b")
        for limit in (24, 32)
    ]
    found = group(runs, None, None)
    assert (set(found.by), len(found.settings), found.repeated) == ({"checkpoint", "inference.max_new_tokens"}, 4, 0)


def test_no_task_solved_is_no_certainty() -> None:
    study = study_of([run_of({"lora.r": r}, [0, 0, 0, 0]) for r in (16, 64)])
    assert "0% (0.0 to 49.0)" in markdown(study, [], None)
    assert verdict(study) == "All settings have the same vote_2."
    assert "± 0.0" not in markdown(study, [], None)


def test_coverage_of_runs_alone_and_together() -> None:
    runs = [
        run_of({"training.seed": 0}, [1, 0, 0, 0], candidates=[1, 1, 0, 0]),
        run_of({"training.seed": 1}, [1, 0, 0, 0], candidates=[1, 0, 1, 0]),
    ]
    study = study_of(runs)
    assert study.pooled is not None
    assert dataclasses.astuple(study.pooled) == (0.25, 0.5, 0.75, 2)
    assert "for 75.0%, at least one of all runs has it." in markdown(study, [], None)
    assert markdown(study, [], None).startswith("# vote_2\n\n1 setting, 2 runs, 2 seeds, 4 tasks.\n")


def test_coverage_of_settings_is_compared_at_equal_numbers_of_runs() -> None:
    """Of three runs, two cover a test with the chance that not both are among those that fail."""
    runs = [
        run_of({"lora.r": 16, "training.seed": seed}, [0, 0, 0], candidates=[seed == 0, seed < 2, 0])
        for seed in range(3)
    ]
    runs += [run_of({"lora.r": 64, "training.seed": seed}, [0, 0, 0], candidates=[1, 0, 0]) for seed in range(2)]
    first, second = (row.coverage for row in study_of(runs).rows)
    assert first is not None
    assert second is not None
    assert (first.pooled, first.runs) == (pytest.approx((2 / 3 + 1) / 3), 2)
    assert (second.pooled, second.runs) == (pytest.approx(1 / 3), 2)
    assert "of any of 2 runs" in markdown(study_of(runs), [], None)


def test_a_difference_of_almost_nothing_has_no_sign() -> None:
    study = study_of(ranks())
    assert difference_words(study, Interval(-0.0001, -0.02, 0.0004)) == "+0.0 (-2.0 to +0.0)"
    assert difference_words(dataclasses.replace(study, metric="loss"), Interval(-0.0123, np.nan, np.nan)) == "-0.012"


def test_a_tie_is_called_one() -> None:
    study = study_of([run_of({"lora.r": r}, [r < 100, 0, 0]) for r in (16, 64, 256)])
    assert verdict(study) == (
        "lora.r=16 and lora.r=64 have the best vote_2, and no other differs from lora.r=16 by more than noise."
    )


def test_a_loss_has_no_tasks() -> None:
    runs = [
        run_of({"lora.r": r, "training.seed": seed}, [0, 1], metrics={"eval_loss": 1 - r / 100 + seed / 1000})
        for r in (16, 64)
        for seed in (0, 1)
    ]
    study = study_of(runs, metric="eval_loss")
    assert (study.over, study.lower_is_better) == ("seeds", True)
    assert [row.is_best for row in study.rows] == [False, True]
    assert "lora.r=64 (-0.480, -0.483 to -0.477; p < 0.001) beats lora.r=16" in verdict(study)


def test_older_runs_are_compared_over_seeds() -> None:
    runs = [dataclasses.replace(run, scores=None) for run in ranks(seeds=2)]
    study = study_of(runs)
    assert study.over == "seeds"
    assert study.notes[-1].startswith("Compared over seeds alone: ")


def no_losses(folder: Path, step: int) -> dict[str, float]:
    raise AssertionError


def test_an_evaluation_has_the_losses_of_its_training() -> None:
    trained = [run_of({"lora.r": r}, [0.0], folder=Path(f"/runs/{r}")) for r in (16, 64)]
    evaluated = run_of({"lora.r": 16}, [1, 0], job="evaluate", trained_in=Path("/runs/16"), metrics={"vote_2": 0.5})
    evaluated = dataclasses.replace(evaluated, costs={"evaluation_seconds": 5.0})
    runs, rest = join_evaluations([*trained, evaluated], no_losses)
    assert [run.metrics["eval_loss"] for run in runs] == [1.0]
    assert runs[0].costs == {"seconds": 90.0, "peak_bytes": 2**30, "evaluation_seconds": 5.0}
    assert rest == [trained[1]]
    assert join_evaluations(trained, no_losses) == (trained, [])


def test_a_checkpoint_within_a_run_has_the_losses_of_its_step() -> None:
    trained = run_of({}, [0.0], folder=Path("/runs/16"), step=6)
    parts = [
        run_of({"step": step}, [1, 0], job="evaluate", trained_in=Path("/runs/16"), metrics={}, costs={}, step=step)
        for step in (2, 4, 6)
    ]
    runs, _ = join_evaluations([trained, *parts], lambda folder, step: {"eval_loss": 5.0} if step == 2 else {})
    assert [run.metrics for run in runs] == [{"eval_loss": 5.0}, {}, {"eval_loss": 1.0, "loss": 0.9}]
    assert [dict(run.costs) for run in runs] == [{"peak_bytes": 2**30}] * 2 + [{"seconds": 90.0, "peak_bytes": 2**30}]


def test_files_hold_the_same_figures() -> None:
    study = study_of(ranks())
    content = json.loads(json.dumps(json_content(study, []), allow_nan=False))
    rows = list(csv.DictReader(io.StringIO(csv_text(study))))
    assert [row["lora.r"] for row in rows] == ["16", "64", "256"]
    for row, setting in zip(rows, content["settings"], strict=True):
        assert float(row["vote_2"]) == setting["value"]["value"]
        assert len(setting["runs"]) == 3
    assert rows[0]["difference"] == ""
    assert float(rows[1]["p_holm"]) == content["settings"][1]["p_holm"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cosine", "cosine"),
        ("", "''"),
        ("null", "'null'"),
        (None, "null"),
        ("You solve puzzles.\n\nAnswer  briefly.", "'You solve puzzles. Answer briefly.'"),
        ("x" * 70, "x" * 59 + "…"),
        ([1] * 40, "[" + "1, " * 19 + "1…"),
        (1e-4, "0.0001"),
    ],
)
def test_a_value_is_one_short_line(value: Any, text: str) -> None:
    assert shown(value) == text


def test_long_values_that_end_differently_are_two_settings() -> None:
    prompts = ["Solve it.\n" * 10 + end for end in ("Now.", "Later.")]
    runs = [run_of({"prompt.system": prompt, "training.seed": 0}, [1, 0]) for prompt in prompts]
    study = study_of(runs)
    first, second = (row.setting.label for row in study.rows)
    assert second == f"{first} (2)"
    assert "\n" not in first
    assert find_setting(study.grouping, prompts[1]).label == second
    assert [row["prompt.system"] for row in csv.DictReader(io.StringIO(csv_text(study)))] == prompts


def test_what_makes_no_setting_is_named() -> None:
    runs = [run_of({"inference.batch_size": size, "training.seed": 0}, [1, 0]) for size in (1, 4, 8)]
    assert study_of(runs).notes[-1] == (
        "They differ in inference.batch_size, which makes no setting by itself; compare it with "
        "by=inference.batch_size."
    )
    assert len(study_of(runs, by=["inference.batch_size"]).rows) == 3


def test_bars_of_several_lines_lie_beside_each_other() -> None:
    """And 200 values are a band."""
    runs = [
        run_of({"lora.r": r, "scheduler.name": name}, [r % 2, 0, 1])
        for r in range(16, 216)
        for name in ("linear", "cosine")
    ]
    few = [run for run in runs if run.config["lora.r"] in (16, 17, 200)]
    for chosen, bars in ((few, 2), (runs, 0)):
        study = study_of(chosen)
        figure = Figure()
        axes = figure.subplots()
        _draw_lines(study, study.grouping.by.index("lora.r"), False, axes)
        assert len(axes.containers) == bars
        assert len(axes.collections) == 2
    first, second = (line.get_xdata() for line in _lines_of(few))
    assert [float(x) for x in first] < [float(x) for x in second]
    assert second[-1] / first[-1] < 1.05


def _lines_of(runs: Sequence[Run]) -> list[Any]:
    study = study_of(runs)
    axes = Figure().subplots()
    _draw_lines(study, study.grouping.by.index("lora.r"), False, axes)
    return [container.lines[0] for container in axes.containers]


def test_the_chart_takes_dollars_for_dollars() -> None:
    runs = [run_of({"prompt.system": text}, [1, 0, 1]) for text in ("cost $5 and $6", "$x_{{ $")]
    assert study_png(study_of(runs)).startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [(16, 64, 256), ("linear", "cosine", "a_schedule_with_a_very_long_name" * 3)])
def test_the_chart(names: Sequence[Any]) -> None:
    key = "lora.r" if isinstance(names[0], int) else "scheduler.name"
    runs = [
        run_of({key: name, "training.seed": seed}, scores[seed])
        for name, scores in zip(names, np.random.default_rng(0).integers(0, 2, (3, 2, 9)), strict=True)
        for seed in (0, 1)
    ]
    with Image.open(io.BytesIO(study_png(study_of(runs)))) as picture:
        assert picture.width > 1200
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10
