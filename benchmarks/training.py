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
warm-up. The mean loss over all steps shows that the setups do the same work. Each setup has a process of its own. On a
CPU they take turns, step by step, on one thread, and the time is the processor's; on a GPU they run one after the
other.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WAYS = (
    "arcft", "groups", "packing", "compile", "hf", "trl", "hf_flash", "trl_flash", "unsloth", "arcft_unsloth",
)  # fmt: skip
HERE = {
    "arcft": [],
    "groups": ["training.max_batch_tokens=8192"],
    "packing": ["training.packing=true"],
    "compile": ["training.packing=true", "training.compile=true"],
    "arcft_unsloth": ["model.backend=unsloth"],
}
"""arcft's setups, as overrides of train.py."""

TITLES = {
    "arcft": "arcft",
    "groups": "arcft, in groups of like length",
    "packing": "arcft, packed",
    "compile": "arcft, packed, compiled",
    "hf": "transformers' Trainer, PEFT, sdpa",
    "trl": "TRL's SFTTrainer, packed, sdpa",
    "hf_flash": "transformers' Trainer, flash attention",
    "trl_flash": "TRL's SFTTrainer, packed, flash attention",
    "unsloth": "unsloth, transformers' Trainer",
    "arcft_unsloth": "arcft, model.backend=unsloth",
}
LEARNING_RATE = 1e-4
SMOLLM2 = "smollm2_135m"
EXAMPLES = "examples.json"


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if arguments.only is not None:
        measure(arguments)
        return
    from ttft import machine

    models = []
    for name in arguments.model:
        for dtype in arguments.dtype:
            with tempfile.TemporaryDirectory() as folder:
                save_base(name, dtype, Path(folder), arguments)
                write_examples(name, Path(folder), arguments)
                rows = run_ways(name, dtype, Path(folder), arguments)
            print_table(f"{name}, {dtype}", rows)
            models.append(
                {"model": name, "dtype": dtype, "rank": arguments.rank, "batch": arguments.batch, "ways": rows}
            )
    print(json.dumps({"benchmark": "training", "quick": arguments.quick, **machine(), "models": models}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, two steps")
    parser.add_argument("--model", action="append", metavar="NAME",
                        help="tiny, or a folder's name in benchmarks/architectures; repeatable")  # fmt: skip
    parser.add_argument("--smollm2", type=Path, metavar="GGUF", help="also SmolLM2-135M-Instruct, from this file")
    parser.add_argument("--dtype", type=lambda text: text.split(","), metavar="A,B",
                        help="default: bfloat16 on a GPU, bfloat16 and float32 on a CPU")  # fmt: skip
    parser.add_argument("--ways", type=lambda text: text.split(","), metavar="A,B,...",
                        help=f"some of {','.join(WAYS)}; default: all that this machine can run")  # fmt: skip
    parser.add_argument("--trl-python", metavar="PATH", help="a Python with trl, if not this one (TRL 1.8 was tried)")
    parser.add_argument(
        "--tokenizer", metavar="DIR", default="bundled:tiny", help="tokenizer of the models with random weights"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest example")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=2, help="unmeasured steps before them")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the setup that this process measures
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.warm_up, arguments.batch, arguments.length = 2, 1, 2, 512
    arguments.model = arguments.model or ([] if arguments.smollm2 else ["tiny"])
    if arguments.smollm2 is not None and SMOLLM2 not in arguments.model:
        arguments.model.append(SMOLLM2)
    if arguments.only is None:
        import torch

        on_gpu = torch.cuda.is_available()
        arguments.dtype = arguments.dtype or (["bfloat16"] if on_gpu else ["bfloat16", "float32"])
        arguments.ways = arguments.ways or runnable(arguments, on_gpu)
    unknown = [way for way in [*(arguments.ways or []), *filter(None, [arguments.only])] if way not in WAYS]
    if unknown:
        parser.error(f"--ways {unknown[0]}: known are {','.join(WAYS)}")
    return arguments


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
    return [way for way in WAYS if way not in absent]


def save_base(name: str, dtype: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Write the model into the empty `folder`, in the form that every setup reads."""
    import torch
    from adaptation.prepare import ARCHITECTURES, drawn_on_gpu

    from arcft.config.model import ModelConfig
    from arcft.models.load import load_model, load_tokenizer

    if name == "tiny":
        config = ModelConfig(name=name, path="bundled:tiny")
    elif name == SMOLLM2:
        config = ModelConfig(name=name, path=str(arguments.smollm2))
    else:
        config = ModelConfig(name=name, path=str(ARCHITECTURES / name), init="random", tokenizer=arguments.tokenizer)
    if config.init == "random" and torch.cuda.is_available():
        model = drawn_on_gpu(ARCHITECTURES / name, getattr(torch, dtype))
    else:
        model = load_model(config, dtype=getattr(torch, dtype), device=torch.device("cpu"))
    # Weights read from a GGUF file are no longer quantised.
    if "quantization_config" in model.config.to_dict():
        del model.config.quantization_config
    model.save_pretrained(folder)
    load_tokenizer(config).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def write_examples(name: str, base: Path, arguments: argparse.Namespace) -> None:
    """Write the examples of all steps as token ids and labels."""
    from arcft.runs.training.preparation import prepare

    steps = arguments.warm_up + arguments.steps
    prepared = prepare(make_config("arcft", "float32", steps, name, base, arguments))
    examples = [prepared.stream[number] for number in range(steps * arguments.batch)]
    rows = [[example.input_ids, example.labels, example.prompt_length] for example in examples]
    (base / EXAMPLES).write_text(json.dumps(rows), encoding="utf-8")


def read_examples(base: Path) -> list[tuple[list[int], list[int], int]]:
    return json.loads((base / EXAMPLES).read_text(encoding="utf-8"))


class Setup:
    """The process of a setup, which takes a step when told to."""

    def __init__(self, way: str, name: str, dtype: str, base: Path, arguments: argparse.Namespace) -> None:
        self.row: dict[str, Any] = {"way": way}
        python = arguments.trl_python if way.startswith("trl") and arguments.trl_python else sys.executable
        command = [python, __file__, "--only", way, "--model", name, "--base", str(base), "--dtype", dtype]
        for option in ("rank", "batch", "length", "steps", "warm_up"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.alive = True

    def step(self) -> None:
        """Take a step; after the last one, `row` has the figures."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if answer.startswith("{"):
            self.row |= json.loads(answer)
            self.alive = False
        elif not answer:
            self.row |= {"failure": f"its process ended with {self.process.wait()}"}
            self.alive = False


def run_ways(name: str, dtype: str, base: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of each setup, or why it failed; in separate processes, because unsloth patches transformers."""
    import torch

    together = not torch.cuda.is_available()
    rounds = [arguments.ways] if together else [[way] for way in arguments.ways]
    rows = []
    for ways in rounds:
        setups = [Setup(way, name, dtype, base, arguments) for way in ways]
        while any(setup.alive for setup in setups):
            for setup in setups:
                if setup.alive:
                    setup.step()
        for setup in setups:
            setup.process.communicate()
            rows.append(setup.row)
            print(f"{name}, {dtype}, {TITLES[setup.row['way']]}: {words(setup.row)}", flush=True)
    return rows


def words(row: dict[str, Any]) -> str:
    if "failure" in row:
        return str(row["failure"])
    return (
        f"{row['tokens_per_second']:.0f} tokens/s, {row['step_seconds'] * 1000:.0f} ms per step, "
        f"{row['peak_gib']:.2f} GiB, loss {row['loss']:.3f}"
    )


def measure(arguments: argparse.Namespace) -> None:
    """Run a setup; the last line printed has its figures."""
    way: str = arguments.only
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        # unsloth must be imported before transformers, which everything below imports.
        unsloth = importlib.import_module("unsloth") if "unsloth" in way else None
        with tempfile.TemporaryDirectory() as folder:
            row = train(way, unsloth, arguments, answers, Path(folder))
    except Exception as error:
        traceback.print_exc()
        row = {"failure": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(row), file=answers, flush=True)


def train(way: str, unsloth: Any, arguments: argparse.Namespace, answers: IO[str], folder: Path) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = arguments.warm_up + arguments.steps
    clock = make_clock(arguments.warm_up, steps, answers)
    examples = read_examples(arguments.base)
    losses = (train_here if way in HERE else train_there)(way, unsloth, arguments, examples, clock, folder)
    lengths = [len(ids) for ids, _, _ in examples[arguments.warm_up * arguments.batch :]]
    return {
        "tokens_per_second": sum(lengths) / clock.seconds,
        "step_seconds": clock.seconds / arguments.steps,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "peak_gib": clock.peak_bytes / 2**30,
        "loss": sum(losses) / len(losses),
    }


def make_config(way: str, dtype: str, steps: int, name: str, base: Path, arguments: argparse.Namespace) -> Any:
    """train.py's config for this setup."""
    from data_pipeline import make_config

    overrides = [f"model={'local' if name == 'tiny' else name}"]
    overrides += [f"model.path='{base}'", "prompt=grid_only", "encoder=minimal", "showcase=none"]
    overrides += [
        f"model.recommended.training.max_seq_length={arguments.length}",
        f"lora.r={arguments.rank}",
        f"lora.alpha={arguments.rank}",
    ]
    overrides += ["scheduler=constant", "scheduler.warmup_ratio=0.0", f"training.learning_rate={LEARNING_RATE}"]
    overrides += [f"training.max_steps={steps}", f"training.per_device_train_batch_size={arguments.batch}"]
    overrides += [f"training.save_steps={10 * steps}", f"training.logging_steps={steps}", "data.held_out=0"]
    overrides += ["training.generation_tasks=0", f"training.dtype={dtype}", *HERE[way]]
    return make_config(overrides)


def make_clock(warm_up: int, steps: int, answers: IO[str]) -> Any:
    """A callback that waits for its turn before each step, and adds up the time of those after `warm_up`: the
    processor's on a CPU, else the wall's."""
    import torch
    from transformers import TrainerCallback

    from arcft.memory import peak_bytes, reset_peak

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    now = time.perf_counter if on_gpu else time.process_time

    class Clock(TrainerCallback):
        seconds = 0.0
        peak_bytes = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            if state.global_step == warm_up:
                reset_peak(device)
            self._begun = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            if state.global_step > warm_up:
                self.seconds += now() - self._begun
            if state.global_step == steps:
                self.peak_bytes = peak_bytes(device)
            else:
                print("done", file=answers, flush=True)

    return Clock()


def train_here(
    way: str, unsloth: Any, arguments: argparse.Namespace, rows: list[Any], clock: Any, folder: Path
) -> list[float]:
    """arcft's trainer, built as train.py builds it."""
    from arcft.checkpoints import Origin
    from arcft.models.limits import embedding_rows
    from arcft.models.load import load_tokenizer
    from arcft.runs.setup.build import choose_device
    from arcft.runs.training.model import build_model
    from arcft.text.padding import choose_pad_token
    from arcft.text.tokens import Example
    from arcft.training.arguments import make_training_arguments
    from arcft.training.batches import Grouping
    from arcft.training.saving import Saving
    from arcft.training.trainer import ArcftTrainer

    steps = arguments.warm_up + arguments.steps
    config = make_config(way, arguments.dtype[0], steps, arguments.model[0], arguments.base, arguments)
    tokenizer = load_tokenizer(config.model)
    device = choose_device()
    model, fingerprint = build_model(config, device)
    origin = Origin(base_model="", base_fingerprint=fingerprint, data_fingerprint="", seed=0)
    trainer = ArcftTrainer(
        model=model,
        args=make_training_arguments(config.training, folder, device),
        train_dataset=[Example(*row) for row in rows],  # type: ignore[arg-type]
        eval_dataset=None,
        grouping=Grouping(
            pad_id=choose_pad_token(tokenizer, embedding_rows(model)),
            max_batch_tokens=config.training.max_batch_tokens,
            packing=config.training.packing,
        ),
        optimizer_config=config.optimizer,
        scheduler_config=config.scheduler,
        eval_steps=config.training.max_steps,
        saving=Saving(tokenizer=tokenizer, run_config={}, origin=origin, save_total_limit=1),
        compile=config.training.compile,
        callbacks=[clock],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_there(
    way: str, unsloth: Any, arguments: argparse.Namespace, examples: list[Any], clock: Any, folder: Path
) -> list[float]:
    """transformers' Trainer or TRL's, with their defaults."""
    import torch

    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": arguments.warm_up + arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "bf16": arguments.dtype[0] == "bfloat16",
        "use_cpu": not on_gpu,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no",
        "logging_steps": arguments.warm_up + arguments.steps,
        "disable_tqdm": True,
        "report_to": [],
    }
    rows = [{"input_ids": ids, "labels": labels} for ids, labels, _ in examples]
    model = their_model(way, unsloth, arguments)
    if way.startswith("trl"):
        trainer = trl_trainer(model, settings, rows, clock, arguments)
    else:
        from transformers import Trainer, TrainingArguments

        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings, remove_unused_columns=False),
            train_dataset=rows,
            data_collator=padded,
            callbacks=[clock],
        )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trl_trainer(
    model: Any, settings: dict[str, Any], rows: list[Any], clock: Any, arguments: argparse.Namespace
) -> Any:
    """SFTTrainer, each batch as one row. Packing over batches would change what is in an update."""
    from transformers import AutoTokenizer

    trl = importlib.import_module("trl")
    datasets = importlib.import_module("datasets")
    config = trl.SFTConfig(
        **settings,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
    )
    return trl.SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.base),
        callbacks=[clock],
    )


def their_model(way: str, unsloth: Any, arguments: argparse.Namespace) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    rank, names = arguments.rank, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if way == "unsloth":
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(arguments.base), max_seq_length=arguments.length, dtype=torch.bfloat16, load_in_4bit=False
        )
        return unsloth.FastLanguageModel.get_peft_model(
            model, r=rank, lora_alpha=rank, lora_dropout=0, target_modules=names, use_gradient_checkpointing=False,
            random_state=0,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        arguments.base,
        dtype=getattr(torch, arguments.dtype[0]),
        attn_implementation="flash_attention_2" if way.endswith("_flash") else "sdpa",
        device_map="cuda" if on_gpu else "cpu",
    )
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
    return peft.get_peft_model(model, config)


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest example, with an attention mask."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": torch.tensor(mask)}


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    base = next((row["tokens_per_second"] for row in rows if row["way"] == "hf" and "failure" not in row), None)
    print(f"\n{name}\n\n{'':44}{'tokens/s':>10}{'vs hf':>9}{'ms/step':>11}{'GiB':>8}{'loss':>8}")
    for row in rows:
        if "failure" in row:
            print(f"{TITLES[row['way']]:44} {row['failure']}")
            continue
        ratio = "" if base is None else f"{row['tokens_per_second'] / base:.2f}x"
        print(
            f"{TITLES[row['way']]:44}{row['tokens_per_second']:10.0f}{ratio:>9}{row['step_seconds'] * 1000:11.0f}"
            f"{row['peak_gib']:8.2f}{row['loss']:8.3f}"
        )
    print()


if __name__ == "__main__":
    main()
