"""Decoding, technique by technique, against transformers' `generate` with the same prompts.

    python benchmarks/decode.py --quick
    python benchmarks/decode.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/decode.py --no-tiny --architecture qwen2_5_0_5b --parts steps,reading   # random weights
    python benchmarks/decode.py --adapted EVALUATION/adapters     # kept by evaluate.py model=tiny ttft=per_task
                                                                  # ttft.keep_adapters=true

Four parts, `--parts` names them:

steps: decoding only, after the prefill. Grids of random cells in encoder=shape_row, consecutive positions, rows of
equal length, which spares `generate` its mask. Every variant writes the tokens of a grid of the given side: any tokens
without a grammar; with one, the cells are free and everything else is forced. A draft is the model's own greedy answer,
or that answer with one cell in 20 changed.
reading: prefill only, with and without shared prefixes.
tasks: tests of ARC-1 from prompts to grids, 8 augmented prompts each, with the encoder and positions that the model
recommends; where positions jump, a hook passes them to `generate`. An answer has the shape, and so the length, of the
true one; greedy and search are also compared with the shape and the end left to the model. Drafts are the most frequent
answer to the test's earlier prompts: their quality depends on how well the weights know the task, so give --adapted.
rounding: how often a token differs between forward passes over one token and over 16.

Times are CPU time when one thread computes, wall time otherwise. Variants take turns; a ratio is the median over pairs
that were measured next to each other.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decoding.subjects import Subject

PARTS = ("steps", "reading", "tasks", "rounding")
GOALS = {"tiny": 3.0, "smollm2_135m": 4.0}
"""Speedup over `generate` on real tasks, with drafts."""

SEARCH_GOAL = 3.0
"""Upper limit of search time over greedy time."""

DTYPES = {"tiny": "float32", "smollm2_135m": "bfloat16"}
MAX_TOKENS = 1024


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from decoding.subjects import clock
    from ttft import machine

    from arcft.runs.setup.build import choose_device

    names = ["tiny"] * arguments.tiny + ["smollm2_135m"] * (arguments.smollm2 is not None)
    names += [arguments.architecture] * (arguments.architecture is not None)
    models = [measure(name, arguments) for name in names]
    for model in models:
        print_model(model)
    result = {
        "benchmark": "decode",
        "quick": arguments.quick,
        **machine(),
        "clock": clock(choose_device()),
        "models": models,
    }
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model alone, small grids, one task")
    parser.add_argument("--smollm2", metavar="PATH", type=Path, help="GGUF file or folder of SmolLM2-135M-Instruct")
    parser.add_argument("--architecture", metavar="NAME", help="a folder's name in benchmarks/architectures")
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, default=True, help="the bundled model")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), metavar="A,B,...",
                        help=f"which to measure, of {','.join(PARTS)}")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="arithmetic; without it float32 for tiny, else bfloat16")  # fmt: skip
    parser.add_argument("--sides", type=numbers, default=[10, 20], metavar="N,...", help="grid sides, for steps")
    parser.add_argument("--rows", type=numbers, default=[1, 8, 32], metavar="N,...", help="batch sizes, for steps")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement")
    parser.add_argument("--tasks", type=int, default=10, help="number of real tasks, spread over their lengths")
    parser.add_argument("--split", choices=("training", "evaluation"), default="evaluation", help="of ARC-1")
    parser.add_argument("--predictions", type=int, default=8, help="augmented prompts per test")
    parser.add_argument("--adapted", type=Path, metavar="FOLDER",
                        help="adapters of single tasks; only these tasks are measured; for one model")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.smollm2 is not None and not arguments.smollm2.exists():
        parser.error(f"--smollm2 {arguments.smollm2}: there is no such file or folder")
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts {unknown[0]}: known are {','.join(PARTS)}")
    if not arguments.tiny and arguments.smollm2 is None and arguments.architecture is None:
        parser.error("--no-tiny leaves no model; give --smollm2 PATH, or --architecture NAME")
    if arguments.architecture is not None and {"tasks", "rounding"} & set(arguments.parts):
        parser.error("--architecture has random weights, which solve no task; add --parts steps,reading")
    if arguments.adapted is not None and arguments.tiny and arguments.smollm2 is not None:
        parser.error("--adapted holds adapters of one model; give --no-tiny, or no --smollm2")
    if arguments.quick:
        arguments.smollm2 = None
        arguments.tiny = True
        arguments.sides, arguments.rows, arguments.repeats = [5], [1, 4], 2
        arguments.tasks, arguments.predictions = 1, 4
    return arguments


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from decoding.rounding import measure_rounding
    from decoding.steps import measure_reading, measure_steps
    from decoding.subjects import adapter_folders, make_subject, real_tasks
    from decoding.tasks import measure_tasks

    path = arguments.smollm2.resolve() if name == "smollm2_135m" else None
    dtype = arguments.dtype or DTYPES.get(name, "bfloat16")
    random: list[str] = []
    if name == arguments.architecture:
        path = Path(__file__).parent.resolve() / "architectures" / name
        random = ["model.init=random", "model.tokenizer=bundled:tiny", "prompt=grid_only"]

    def subject(*overrides: str, dtype: str = dtype) -> Subject:
        return make_subject(
            name, dtype=dtype, path=path, predictions=arguments.predictions, overrides=(*random, *overrides),
            max_seq_length=2 * MAX_TOKENS,
        )  # fmt: skip

    def say(what: str) -> None:
        print(f"{name}: {what}", flush=True)

    model: dict[str, Any] = {"model": name, "dtype": dtype}
    if "steps" in arguments.parts or "reading" in arguments.parts:
        counted = subject("encoder=shape_row", "model.positions=none")
        if "steps" in arguments.parts:
            model["steps"] = []
            for side in arguments.sides:
                for rows in arguments.rows:
                    say(f"{side}x{side} cells, {rows} rows")
                    model["steps"].append(measure_steps(counted, side, rows, arguments.repeats))
        if "reading" in arguments.parts:
            say("reading prompts")
            model["reading"] = measure_reading(counted, min(arguments.sides), arguments.repeats)
    if "tasks" in arguments.parts or "rounding" in arguments.parts:
        adapters = adapter_folders(arguments.adapted) if arguments.adapted is not None else None
        real = subject()
        longest = MAX_TOKENS // 2 if arguments.quick else MAX_TOKENS
        tasks = real_tasks(real, arguments.split, arguments.tasks, longest, adapters)
        if "tasks" in arguments.parts:
            measured = measure_tasks(real, tasks, adapters)
            model["tasks"] = {"note": real.note, **measured, "goals": goals(name, measured)}
        if "rounding" in arguments.parts:
            say("rounding")
            model["rounding"] = [
                measure_rounding(subject(dtype=kind), tasks, adapters) for kind in ("float32", "bfloat16")
            ]
    return model


def goals(name: str, measured: dict[str, Any]) -> list[dict[str, Any]]:
    faster = measured["total_ratios"]["guesses"]
    longer = measured["search_to_greedy"]
    return [
        {"what": "times faster than generate", "goal": GOALS[name], "is": faster, "met": faster >= GOALS[name]},
        {"what": "search, times as long as greedy", "goal": SEARCH_GOAL, "is": longer, "met": longer <= SEARCH_GOAL},
    ]


def print_model(model: dict[str, Any]) -> None:
    from decoding.steps import TITLES, WAYS
    from decoding.tasks import TITLES as TASK_TITLES

    print(f"\n{model['model']}, {model['dtype']}")
    steps = model.get("steps", [])
    if steps:
        print("\ndecoding only: cells per second, and speedup over generate\n")
        heads = [f"{one['side']}x{one['side']}, {one['rows']} rows" for one in steps]
        print(f"{'':22}" + "".join(f"{head:>17}" for head in heads))
        for way in WAYS:
            cells = [f"{one['cells_per_second'][way]:9.0f}{one['ratios'][way]:7.2f}x" for one in steps]
            print(f"{TITLES[way]:22}" + "".join(cells))
    if "reading" in model:
        print("\nprefill: seconds, and speedup over separate prompts\n")
        for one in model["reading"]:
            ways = [f"{way} {one['seconds'][way]:.2f} ({one['ratios'][way]:.2f}x)" for way in one["seconds"]]
            print(f"{one['prompts']}, {one['tokens']} tokens: {', '.join(ways)}")
    if "tasks" in model:
        tasks = model["tasks"]
        kind = "adapted to each" if tasks["adapted"] else "not adapted"
        print(
            f"\n{tasks['tests']} tests of {tasks['tasks']} tasks, {kind}, {tasks['note']}; {tasks['right']} of "
            f"{tasks['predictions']} predictions correct: seconds per test, and speedup over generate\n"
        )
        for way, title in TASK_TITLES.items():
            print(
                f"{title:28}{tasks['seconds_per_test'][way]:9.2f}{tasks['total_ratios'][way]:8.2f}x"
                f"{tasks['ratios'][way]:8.2f}x (median)"
            )
        print(
            f"different answers: {tasks['ours_differ']} of {tasks['predictions']} between generate and our loop, "
            f"{tasks['guesses_differ']} with and without drafts; {tasks['scored']} grids scored; found above 0.1: "
            f"{tasks['found']} grids ({tasks['cut_short']} prompts cut short), {tasks['found_any']} texts "
            f"({tasks['cut_short_any']}), in {tasks['search_to_greedy']:.2f} and {tasks['search_to_greedy_any']:.2f} "
            "times the time of greedy"
        )
        for goal in tasks["goals"]:
            print(f"goal {goal['goal']} ({goal['what']}): {goal['is']:.2f}, {'met' if goal['met'] else 'missed'}")
    for one in model.get("rounding", []):
        print(
            f"{one['dtype']}: {one['differing']} of {one['cells']} cells ({one['share']:.2%}) differ between a token "
            f"and {one['chunk']} a pass"
        )
    print()


if __name__ == "__main__":
    main()
