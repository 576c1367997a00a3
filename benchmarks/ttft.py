"""Time from task to answer (adapt, then predict) of the usual setups and of arcft.

    python benchmarks/ttft.py --quick
    python benchmarks/ttft.py --model tiny --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/ttft.py --ways d1,dauto --no-growth     # or --growth-only
    python benchmarks/ttft.py --model qwen3_4b --ways c,d1,d8     # random weights of that architecture, on a GPU

Setups: (a) one process per task with transformers' Trainer, PEFT and `generate`; (b) the same in one process; (c) PEFT
in a bare training loop, and `generate`; (d) arcft's engine with 1, 2, 4, 8 slots, and with ttft.slots=auto.

All setups get the same tasks of ARC-1, the same start adapter, the same examples at each step in batches of one, the
same learning-rate schedule and the same prompts, decoded together; every answer has the mean length of the true
answers, so that none is faster by writing less. (a) to (c) are given examples and prompts as token ids; (d) makes them
itself and writes its ledger. (a) merges its adapter before predicting; (b) and (c) can't, because un-merging in place
is not exact. On a CPU the setups take turns on each block of tasks, and a ratio is the median over the blocks; on a
GPU, where memory is scarce and there is no other load, they run one after another, and one that fails is reported and
left out. Loading is included in (a), where every task pays for it; for the others it is reported separately. Goals are
held against ratios of processor time on a CPU, and of wall time on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptation.prepare import Plan
    from adaptation.workload import Figures, Workload

WAYS = ("a", "b", "c", "d1", "d2", "d4", "d8", "dauto")
SLOTS = {"d1": 1, "d2": 2, "d4": 4, "d8": 8}
# Dense bfloat16, without sparsity, from the vendors' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
GOALS = {
    ("tiny", "cpu"): {"a": 3.0},
    ("smollm2_135m", "cpu"): {"a": 1.8, "c": 1.5},
    ("qwen3_4b", "cuda"): {"a": 20.0, "c": 5.0},
}
"""Speedup over (a) or (c) of arcft's fastest setup."""


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from adaptation.prepare import prepare

    models = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, plan in enumerate(wanted_plans(arguments)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            workload = prepare(plan, folder)
            ways = [way for way in arguments.ways if way not in SLOTS or SLOTS[way] <= plan.tasks]
            model = measure(workload, ways)
            print_table(model)
            models.append(model)
        growth = [] if arguments.no_growth else measure_growth(Path(scratch) / "growth", quick=arguments.quick)
    result = {
        "benchmark": "ttft",
        "quick": arguments.quick,
        **machine(),
        "models": models,
        "growth": growth,
    }
    print(json.dumps(result))
    sys.exit(any(model["failures"] for model in models))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model alone, a few tasks and steps")
    parser.add_argument("--smollm2", metavar="PATH", type=Path, help="GGUF file or folder of SmolLM2-135M-Instruct")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="tiny, or a folder's name in "
                        "benchmarks/architectures; may be given several times; without it: tiny")  # fmt: skip
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), metavar="A,B,...",
                        help=f"which to measure, of {','.join(WAYS)}")  # fmt: skip
    parser.add_argument("--tasks", type=int, help="tasks per block, if the default takes too long")
    parser.add_argument("--steps", type=int, help="steps per task, if the default takes too long")
    growth = parser.add_mutually_exclusive_group()
    growth.add_argument("--no-growth", action="store_true", help="leave out the growth from 10 to 400 tasks")
    growth.add_argument("--growth-only", action="store_true", help="measure nothing but that growth")
    arguments = parser.parse_args()
    if arguments.smollm2 is not None and not arguments.smollm2.exists():
        parser.error(f"--smollm2 {arguments.smollm2}: there is no such file or folder")
    unknown = [way for way in arguments.ways if way not in WAYS]
    if unknown:
        parser.error(f"--ways {','.join(unknown)}: known are {','.join(WAYS)}")
    known = ["tiny", *sorted(path.name for path in (Path(__file__).parent / "architectures").iterdir())]
    unknown = [name for name in arguments.model if name not in known]
    if unknown:
        parser.error(f"--model {unknown[0]}: known are {', '.join(known)}")
    return arguments


def wanted_plans(arguments: argparse.Namespace) -> list[Plan]:
    from adaptation import plans

    if arguments.growth_only:
        return []
    names = arguments.model or ([] if arguments.smollm2 and not arguments.quick else ["tiny"])
    chosen = [plans.tiny(quick=arguments.quick) if name == "tiny" else plans.on_gpu(name) for name in names]
    if arguments.smollm2 is not None:
        chosen.append(plans.smollm2(arguments.smollm2.resolve()))
    changes = {name: getattr(arguments, name) for name in ("tasks", "steps") if getattr(arguments, name) is not None}
    return [dataclasses.replace(plan, **changes) for plan in chosen]


def measure(workload: Workload, ways: Sequence[str]) -> dict[str, Any]:
    """Measure every setup block by block, and summarise."""
    from adaptation.serve import serving, title

    results: dict[str, list[Figures]] = {way: [] for way in ways}
    load_seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    on_gpu = workload.device == "cuda"
    # All at once, so that they can take turns; on a GPU one at a time.
    groups = [[way] for way in ways] if on_gpu else [list(ways)]
    with contextlib.ExitStack() as stack:
        servers = {way: stack.enter_context(serving(way, workload)) for way in ways}
        for group in groups:
            try:
                for way in group:
                    load_seconds[way] = servers[way].load()
                    print(f"{workload.name}, {title(way)}: loaded in {load_seconds[way]:.1f} s", flush=True)
                for number, way, task_ids in turns(workload, group):
                    figures = servers[way].answer(task_ids)
                    results[way].append(figures)
                    print(
                        f"{workload.name}, block {number + 1} of {len(workload.blocks)}, {title(way)}: "
                        f"{words(figures)}",
                        flush=True,
                    )
            except RuntimeError as error:
                if not on_gpu:
                    raise
                (way,) = group
                failures[way] = str(error)
                del results[way]
                print(error, flush=True)
            for way in group:
                servers[way].close()
    rows = [row(workload, way, figures, load_seconds[way]) for way, figures in results.items()]
    model: dict[str, Any] = {
        "model": workload.name,
        "note": workload.note,
        "device": workload.device,
        "dtype": workload.dtype,
        "tasks": sum(map(len, workload.blocks)),
        "blocks": len(workload.blocks),
        "steps": workload.steps,
        "predictions": workload.predictions,
        "new_tokens": workload.new_tokens,
        "base_parameters": workload.base_parameters,
        "adapter_parameters": workload.adapter_parameters,
        "ways": rows,
        "failures": failures,
        "ratios": ratios(results, "seconds"),
        "cpu_ratios": ratios(results, "cpu_seconds"),
    }
    # On a CPU other load changes the time that passes, and hardly the processor's.
    model["goals"] = goals(workload, model["ratios"] if on_gpu else model["cpu_ratios"])
    return model


def words(figures: Figures) -> str:
    """The figures of a block, printed at once in case time runs out before the table."""
    adapt, predict = figures.adapt_seconds / figures.tasks, figures.predict_seconds / figures.tasks
    return (
        f"{figures.seconds / figures.tasks:.1f} s per task (adapt {adapt:.2f}, predict {predict:.2f}), "
        f"{figures.tasks} tasks, {figures.peak_bytes / 2**30:.1f} GiB"
    )


def turns(workload: Workload, ways: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Every setup does each block; the setup that goes first rotates from block to block."""
    for number, block in enumerate(workload.blocks):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            yield number, way, block[: workload.fewer.get(way, len(block))]


def row(workload: Workload, way: str, blocks: Sequence[Figures], load_seconds: float) -> dict[str, Any]:
    """One setup's figures over all its blocks."""
    from adaptation.serve import title

    def total(name: str) -> float:
        return sum(getattr(figures, name) for figures in blocks)

    tasks, seconds, trained = total("tasks"), total("seconds"), total("trained_tokens")
    # Forward and backward take 4 operations per token and frozen weight, 6 per trained weight; causal attention 6 per
    # layer, width and (token, earlier token) pair, of which there are half the squared length.
    operations = trained * (4 * workload.base_parameters + 6 * workload.adapter_parameters)
    operations += 6 * workload.layers * workload.attention_width * total("attention_terms")
    peak = peak_flops()
    return {
        "way": way,
        "title": title(way),
        "tasks": tasks,
        "load_seconds": load_seconds,
        "seconds_per_task": seconds / tasks,
        "cpu_seconds_per_task": total("cpu_seconds") / tasks,
        "adapt_seconds_per_task": total("adapt_seconds") / tasks,
        "predict_seconds_per_task": total("predict_seconds") / tasks,
        "tasks_per_hour": 3600 * tasks / seconds,
        "tokens_per_second": (trained + total("read_tokens") + total("produced_tokens")) / seconds,
        "trained_tokens_per_second": trained / total("adapt_seconds"),
        "share_of_peak": None if peak is None else operations / total("adapt_seconds") / peak,
        "peak_gib": max(figures.peak_bytes for figures in blocks) / 2**30,
        "loss_first": statistics.fmean(figures.loss_first for figures in blocks),
        "loss_last": statistics.fmean(figures.loss_last for figures in blocks),
        "notes": sorted({note for figures in blocks for note in figures.notes}),
    }


def ratios(results: dict[str, list[Figures]], name: str) -> dict[str, dict[str, float]]:
    """Speedups over (a), (c) and (d) with one slot: medians over the blocks."""

    def per_task(figures: Figures) -> float:
        return getattr(figures, name) / figures.tasks

    return {
        way: {
            than: statistics.median(per_task(x) / per_task(y) for x, y in zip(results[than], mine, strict=True))
            for than in ("a", "c", "d1")
            if than in results
        }
        for way, mine in results.items()
    }


def goals(workload: Workload, found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """arcft's fastest setup against each goal for this machine and model."""
    ours = {way: of for way, of in found.items() if way.startswith("d")}
    reached = []
    for than, goal in GOALS.get((workload.name, workload.device), {}).items():
        best = max(ours, key=lambda way: ours[way].get(than, 0.0), default=None)
        if best is not None and than in ours[best]:
            ratio = ours[best][than]
            reached.append({"than": than, "goal": goal, "ratio": ratio, "way": best, "met": ratio >= goal})
    if "dauto" in found and "d1" in found["dauto"]:
        ratio = found["dauto"]["d1"]
        reached.append({"than": "d1", "goal": 0.95, "ratio": ratio, "way": "dauto", "met": ratio >= 0.95})
    return reached


def measure_growth(folder: Path, *, quick: bool) -> list[dict[str, float]]:
    """Seconds per task of (d), with more and more tasks in one run."""
    from adaptation.plans import growth
    from adaptation.prepare import prepare
    from adaptation.serve import serving

    folder.mkdir()
    workload = prepare(growth(quick=quick), folder)
    (ids,) = workload.blocks
    found = []
    with serving("d1", workload) as server:
        server.load()
        for count in (10, 40) if quick else (10, 100, 400):
            figures = server.answer(ids[:count])
            found.append(
                {
                    "tasks": count,
                    "seconds_per_task": figures.seconds / count,
                    "cpu_seconds_per_task": figures.cpu_seconds / count,
                    "peak_gib": figures.peak_bytes / 2**30,
                }
            )
            print_growth(found[-1])
    return found


def machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    return {"device": "cuda" if cuda else "cpu", "machine": name, "threads": torch.get_num_threads()}


def peak_flops() -> float | None:
    name = str(machine()["machine"])
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def print_table(model: dict[str, Any]) -> None:
    print(
        f"\n{model['model']} ({model['note']}, {model['dtype']}): {model['tasks']} tasks in {model['blocks']} blocks, "
        f"{model['steps']} steps, {model['predictions']} predictions of {model['new_tokens']} tokens a test\n"
    )
    columns = ["s/task", "adapt", "predict", "load", "tasks/h", "tok/s", "peak", "GiB", "than a", "than c"]
    columns += ["CPU s", "than a", "than c"] if model["device"] == "cpu" else []
    print(f"{'':28}" + "".join(f"{column:>9}" for column in columns))
    for line in model["ways"]:
        share = line["share_of_peak"]
        cells = [
            *(f"{line[f'{part}seconds_per_task']:.2f}" for part in ("", "adapt_", "predict_")),
            "" if line["way"] == "a" else f"{line['load_seconds']:.1f}",
            f"{line['tasks_per_hour']:.0f}",
            f"{line['tokens_per_second']:.0f}",
            "" if share is None else f"{share:.1%}",
            f"{line['peak_gib']:.2f}",
            *times_faster(model["ratios"][line["way"]]),
        ]
        if model["device"] == "cpu":
            cells += [f"{line['cpu_seconds_per_task']:.2f}", *times_faster(model["cpu_ratios"][line["way"]])]
        print(f"{line['title']:28}" + "".join(f"{cell:>9}" for cell in cells))
        for note in line["notes"]:
            print(f"  {note}")
    for goal in model["goals"]:
        verdict = "met" if goal["met"] else "missed"
        print(f"goal {goal['goal']}x ({goal['than']}): {goal['ratio']:.2f}x by {goal['way']}, {verdict}")
    print()


def times_faster(of: dict[str, float]) -> list[str]:
    return [f"{of[than]:.2f}x" if than in of else "" for than in ("a", "c")]


def print_growth(line: dict[str, float]) -> None:
    print(
        f"a run of {line['tasks']} tasks: {line['seconds_per_task']:.3f} s per task, "
        f"{line['cpu_seconds_per_task']:.3f} s of CPU time, {line['peak_gib']:.2f} GiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
