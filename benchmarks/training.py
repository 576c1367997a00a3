"""Training throughput of a LoRA adapter on the same examples: arcft's trainer, transformers' Trainer, TRL, unsloth.

    python benchmarks/training.py --quick
    python benchmarks/training.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf --trl-python VENV/bin/python
    python benchmarks/training.py --model qwen2_5_0_5b --model qwen3_4b     # random weights of these, on a GPU

Setups: `arcft` is train.py's trainer; `groups` the same with training.max_batch_tokens, `packing` with
training.packing, `compile` with packing and training.compile; `hf` transformers' Trainer and PEFT, examples padded to
the longest of the batch, all logits, sdpa attention; `trl` TRL's SFTTrainer, the examples of a batch packed into one
row (padding_free); `hf_flash` and `trl_flash` the same with flash attention, if flash-attn is installed; `unsloth` its
model and adapter under transformers' Trainer, without gradient checkpointing; `arcft_unsloth` train.py with
model.backend=unsloth.

All train an adapter of the same rank on all linear layers with AdamW, on the same examples of ARC-1's training set in
the same batches, given as token ids. Throughput counts the examples' tokens, without padding, in the steps after the
warm-up, from the end of one step to the end of the next. The mean loss over all steps shows that the setups do the
same work. Each setup has a process of its own. On a CPU they take turns, step by step, on one thread, and the time is
the processor's; on a GPU they run one after the other. A line of JSON is printed as each setup ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from throughput.inputs import SMOLLM2, save_base, write_examples
from throughput.setups import SETUPS, TITLES
from throughput.turns import measure, run_setups


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if arguments.only is not None:
        measure(arguments)
        return
    from ttft import machine

    models = [compare(name, dtype, arguments) for name in arguments.model for dtype in arguments.dtype]
    print(json.dumps({"benchmark": "training", "quick": arguments.quick, **machine(), "models": models}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, two steps")
    parser.add_argument("--model", action="append", metavar="NAME",
                        help="tiny, or a folder's name in benchmarks/architectures; repeatable")  # fmt: skip
    parser.add_argument("--smollm2", type=Path, metavar="GGUF", help="also SmolLM2-135M-Instruct, from this file")
    parser.add_argument("--dtype", type=lambda text: text.split(","), metavar="A,B",
                        help="default: bfloat16 on a GPU, bfloat16 and float32 on a CPU")  # fmt: skip
    parser.add_argument("--setups", type=lambda text: text.split(","), metavar="A,B,...",
                        help=f"some of {','.join(SETUPS)}; default: all that this machine can run")  # fmt: skip
    parser.add_argument("--trl-python", metavar="PATH", help="a Python with trl, if not this one (TRL 1.8 was tried)")
    parser.add_argument(
        "--tokenizer", metavar="DIR", default="bundled:tiny", help="tokenizer of the models with random weights"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest example")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=2, help="unmeasured steps before them, at least 1")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the setup that this process measures
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.warm_up, arguments.batch, arguments.length = 2, 1, 2, 512
    arguments.model = arguments.model or ([] if arguments.smollm2 else ["tiny"])
    if arguments.smollm2 is not None and SMOLLM2 not in arguments.model:
        arguments.model.append(SMOLLM2)
    if arguments.only is None:
        if arguments.warm_up < 1:
            parser.error(f"--warm-up {arguments.warm_up}: at least 1")
        unknown = [setup for setup in arguments.setups or [] if setup not in SETUPS]
        if unknown:
            parser.error(f"--setups {unknown[0]}: known are {','.join(SETUPS)}")
        choose_for_this_machine(arguments)
    return arguments


def choose_for_this_machine(arguments: argparse.Namespace) -> None:
    """Fill in the dtypes and setups that were not given."""
    import torch

    on_gpu = torch.cuda.is_available()
    arguments.dtype = arguments.dtype or (["bfloat16"] if on_gpu else ["bfloat16", "float32"])
    arguments.setups = arguments.setups or runnable(arguments, on_gpu)


def runnable(arguments: argparse.Namespace, on_gpu: bool) -> list[str]:
    """The setups for which this machine has the packages and the GPU."""
    absent = set()
    if not on_gpu or importlib.util.find_spec("unsloth") is None:
        absent |= {"unsloth", "arcft_unsloth"}
    if not on_gpu or importlib.util.find_spec("flash_attn") is None:
        absent |= {"hf_flash", "trl_flash"}
    if arguments.trl_python is None and importlib.util.find_spec("trl") is None:
        print("left out: trl is not installed; --trl-python names a Python that has it", file=sys.stderr)
        absent |= {"trl", "trl_flash"}
    if arguments.quick:
        absent.add("compile")  # takes a minute
    return [setup for setup in SETUPS if setup not in absent]


def compare(name: str, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of all setups with a model in a dtype, printed as they come and then as a table."""
    import torch

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_base(name, dtype, Path(folder), arguments)
        write_examples(name, Path(folder), arguments)
        together = not torch.cuda.is_available()
        for row in run_setups(arguments.setups, name, dtype, Path(folder), arguments, together=together):
            line = {"benchmark": "training", "quick": arguments.quick, "model": name, "dtype": dtype, **row}
            print(json.dumps(line), flush=True)
            rows.append(row)
    rows.sort(key=lambda row: arguments.setups.index(row["setup"]))
    print_table(f"{name}, {dtype}", rows)
    return {"model": name, "dtype": dtype, "rank": arguments.rank, "batch": arguments.batch, "setups": rows}


def print_table(name: str, rows: Sequence[dict[str, Any]]) -> None:
    speeds = {row["setup"]: row["tokens_per_second"] for row in rows if "failure" not in row}
    references = [setup for setup in ("hf", "trl", "unsloth") if setup in speeds]
    print(f"\n{name}\n\n{'':44}{'tokens/s':>10}{'ms/step':>10}{'GiB':>7}{'loss':>8}", end="")
    print("".join(f"{f'vs {setup}':>12}" for setup in references))
    for row in rows:
        if "failure" in row:
            print(f"{TITLES[row['setup']]:44} {row['failure']}")
            continue
        print(
            f"{TITLES[row['setup']]:44}{row['tokens_per_second']:10.0f}{row['step_seconds'] * 1000:10.0f}"
            f"{row['peak_gib']:7.2f}{row['loss']:8.3f}",
            end="",
        )
        print("".join(f"{row['tokens_per_second'] / speeds[setup]:11.2f}x" for setup in references))
    print(flush=True)


if __name__ == "__main__":
    main()
