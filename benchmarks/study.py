"""How long `arcft study` takes, from 10 to 1,000 runs of 400 tasks; and how often its intervals hold the truth.

    python benchmarks/study.py            # a few minutes
    python benchmarks/study.py --quick

The second table sets the intervals of arcft beside those of a bootstrap that resamples seeds and tasks independently
(with its deviations over seeds widened by sqrt(S / (S - 1))), on simulated studies of two settings that differ by 5
points. Both should hold the difference in 95% of studies.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arcft.config.study import StudyConfig
from arcft.runs.study import study
from arcft.studies.statistics import difference, holm, run_noise, summarise
from tests.support.study_runs import simulate, write_train_run

TASKS = 400
SEEDS = 5
GAIN = 0.05
DRAWS = 400
"""Of the bootstrap, for each study."""


def main() -> None:
    """Print both tables, and all figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs and fewer studies")
    quick = parser.parse_args().quick
    timings = [timed(number) for number in ((10, 50) if quick else (10, 100, 1000))]
    print(f"{'runs':>6}{'seconds':>9}{'processor':>11}")
    for row in timings:
        print(f"{row['runs']:6,}{row['seconds']:9.1f}{row['processor_seconds']:11.1f}")
    print(f"\n{'seeds':>6}{'noise':>8}{'arcft':>9}{'bootstrap':>11}{'claims without a difference':>30}")
    coverage = []
    for seeds, noise in [(3, 0.03)] if quick else [(2, 0.01), (2, 0.03), (3, 0.01), (3, 0.03), (5, 0.01), (5, 0.03)]:
        coverage.append(covered(seeds, noise, studies=100 if quick else 2000))
        row = coverage[-1]
        print(
            f"{row['seeds']:6}{row['noise']:8.2f}{row['arcft']:9.1%}{row['bootstrap']:11.1%}{row['claims']:30.1%}",
            flush=True,
        )
    print(json.dumps({"benchmark": "study", "quick": quick, "timings": timings, "coverage": coverage}))


def timed(number: int) -> dict[str, Any]:
    """Read and table `number` runs, SEEDS to a setting."""
    rng = np.random.default_rng(0)
    scores = simulate(rng, studies=1, settings=number // SEEDS, seeds=SEEDS, tasks=TASKS)[0]
    with tempfile.TemporaryDirectory() as folder:
        for index in range(number):
            setting, seed = divmod(index, SEEDS)
            changes = {"training.learning_rate": 1e-4 * (1 + setting), "training.seed": seed}
            write_train_run(Path(folder) / str(index), changes, scores[setting, seed])
        wall, processor = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            study(StudyConfig(runs=[folder], out=os.path.join(folder, "study")))
        return {
            "runs": number,
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
        }


def covered(seeds: int, noise: float, *, studies: int) -> dict[str, Any]:
    """How many of the intervals hold the difference, and how many studies of four equal settings claim one."""
    rng = np.random.default_rng(seeds)
    scores = simulate(rng, studies=studies, settings=2, seeds=seeds, tasks=TASKS, noise=noise, gain=GAIN)
    first, second = (summarise(scores[:, index]) for index in (0, 1))
    ours = difference(second, first, run_noise([first, second]))
    held = [holds(bootstrap(scores[index], rng)) for index in range(min(studies, 400))]
    equal = simulate(rng, studies=studies, settings=4, seeds=seeds, tasks=TASKS, noise=noise)
    samples = [summarise(equal[:, index]) for index in range(4)]
    pooled = run_noise(samples)
    p = np.stack([difference(sample, samples[0], pooled).p for sample in samples[1:]], axis=-1)
    return {
        "seeds": seeds,
        "noise": noise,
        "studies": studies,
        "arcft": float(np.mean((ours.low <= GAIN) & (ours.high >= GAIN))),
        "bootstrap": float(np.mean(held)),
        "claims": float(np.mean((holm(p) < 0.05).any(axis=-1))),
    }


def bootstrap(scores: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of the second of two settings minus the first; `scores` are [2, seeds, tasks]."""
    seeds, tasks = scores.shape[1:]
    mean = scores.mean(axis=1, keepdims=True)
    widened = mean + (scores - mean) * np.sqrt(seeds / (seeds - 1))
    weights = rng.multinomial(tasks, [1 / tasks] * tasks, DRAWS) / tasks
    drawn = rng.multinomial(seeds, [1 / seeds] * seeds, (2, DRAWS)) / seeds
    values = np.einsum("kds,kst,dt->kd", drawn, widened, weights, optimize=True)
    low, high = np.quantile(values[1] - values[0], [0.025, 0.975])
    return float(low), float(high)


def holds(interval: tuple[float, float]) -> bool:
    """Whether the true difference is in it."""
    return interval[0] <= GAIN <= interval[1]


if __name__ == "__main__":
    main()
