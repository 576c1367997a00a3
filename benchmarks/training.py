"""Training throughput (tokens/s) of an adapter on the same examples: arcft's trainer, transformers' Trainer, unsloth.

    python benchmarks/training.py --quick
    python benchmarks/training.py --model qwen2_5_0_5b --model qwen3_4b     # random weights of these, on a GPU

Setups: `arcft` is train.py's trainer; `groups` the same with training.max_batch_tokens; `hf` transformers' Trainer and
PEFT, examples padded to the longest of the batch, sdpa attention; `hf_flash` the same with flash attention, if
flash-attn is installed; `unsloth` its model and adapter under transformers' Trainer, without gradient checkpointing;
`arcft_unsloth` train.py with model.backend=unsloth. Each runs in its own process.

All train an adapter of the same rank on all linear layers, in bfloat16 on a GPU, with AdamW, on the same examples of
ARC-1's training set in the same batches, given as token ids. Throughput counts the examples' tokens, without padding,
in the steps after the warm-up. The mean loss over all steps shows that the setups do the same work.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from arcft.text.tokens import Example

WAYS = ("arcft", "groups", "hf", "hf_flash", "unsloth", "arcft_unsloth")
TITLES = {
    "arcft": "arcft",
    "groups": "arcft, in groups of like length",
    "hf": "transformers' Trainer, PEFT, sdpa",
    "hf_flash": "... flash attention",
    "unsloth": "unsloth, transformers' Trainer",
    "arcft_unsloth": "arcft, model.backend=unsloth",
}
GROUP_TOKENS = 8192
LEARNING_RATE = 1e-4


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if arguments.only is not None:
        print(json.dumps(measure(arguments)))
        return
    from ttft import machine

    models = []
    for name in arguments.model:
        with tempfile.TemporaryDirectory() as folder:
            save_base(name, Path(folder), arguments.tokenizer)
            rows = [run_way(way, name, Path(folder), arguments) for way in arguments.ways]
        print_table(name, rows)
        models.append({"model": name, "rank": arguments.rank, "batch": arguments.batch, "ways": rows})
    print(json.dumps({"benchmark": "training", "quick": arguments.quick, **machine(), "models": models}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, two steps")
    parser.add_argument("--model", action="append", metavar="NAME",
                        help="tiny, or a folder's name in benchmarks/architectures; repeatable")  # fmt: skip
    parser.add_argument("--ways", type=lambda text: text.split(","), metavar="A,B,...",
                        help=f"some of {','.join(WAYS)}; default: all that this machine can run")  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="DIR", default="bundled:tiny", help="tokenizer of the models with random weights"
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="examples per step")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest example")
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=5, help="unmeasured steps before them")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the setup that this process measures
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.warm_up, arguments.batch, arguments.length = 2, 1, 2, 512
    arguments.model = arguments.model or ["tiny"]
    arguments.ways = arguments.ways or runnable()
    unknown = [way for way in [*arguments.ways, *filter(None, [arguments.only])] if way not in WAYS]
    if unknown:
        parser.error(f"--ways {unknown[0]}: known are {','.join(WAYS)}")
    return arguments


def runnable() -> list[str]:
    """The setups for which this machine has the packages and the GPU."""
    import torch

    absent = set()
    if not torch.cuda.is_available() or importlib.util.find_spec("unsloth") is None:
        absent |= {"unsloth", "arcft_unsloth"}
    if not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None:
        absent.add("hf_flash")
    return [way for way in WAYS if way not in absent]


def save_base(name: str, folder: Path, tokenizer: str) -> None:
    """Write the model into the empty `folder`, in the form that every setup reads."""
    import torch
    from adaptation.prepare import ARCHITECTURES, drawn_on_gpu

    from arcft.config.model import ModelConfig
    from arcft.models.load import load_model, load_tokenizer

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if name == "tiny":
        config = ModelConfig(name=name, path="bundled:tiny")
    else:
        config = ModelConfig(name=name, path=str(ARCHITECTURES / name), init="random", tokenizer=tokenizer)
    if name != "tiny" and torch.cuda.is_available():
        model = drawn_on_gpu(ARCHITECTURES / name, dtype)
    else:
        model = load_model(config, dtype=dtype, device=torch.device("cpu"))
    model.save_pretrained(folder)
    load_tokenizer(config).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def run_way(way: str, name: str, base: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a setup, or why it failed; measured in a separate process, because unsloth patches transformers
    globally."""
    command = [sys.executable, __file__, "--only", way, "--model", name, "--base", str(base)]
    command += ["--rank", str(arguments.rank), "--batch", str(arguments.batch), "--length", str(arguments.length)]
    command += ["--steps", str(arguments.steps), "--warm-up", str(arguments.warm_up)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    try:
        row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        row = {"way": way, "failure": f"its process ended with {done.returncode}"}
    print(f"{name}, {TITLES[way]}: {words(row)}", flush=True)
    return row


def words(row: dict[str, Any]) -> str:
    if "failure" in row:
        return str(row["failure"])
    return (
        f"{row['tokens_per_second']:.0f} tokens/s, {row['step_seconds'] * 1000:.0f} ms per step, "
        f"{row['peak_gib']:.2f} GiB, loss {row['loss']:.3f}"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    way: str = arguments.only
    try:
        # unsloth must be imported before transformers, which everything below imports.
        unsloth = importlib.import_module("unsloth") if "unsloth" in way else None
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            return {"way": way, **train(way, unsloth, arguments, Path(folder))}
    except Exception as error:
        traceback.print_exc()
        return {"way": way, "failure": f"{type(error).__name__}: {error}"[:500]}


def train(way: str, unsloth: Any, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    steps = arguments.warm_up + arguments.steps
    config = make_config(way, steps, arguments)
    from arcft.runs.train import prepare

    prepared = prepare(config)
    examples = [prepared.stream[number] for number in range(steps * arguments.batch)]
    clock = make_clock(arguments.warm_up, steps)
    if way in ("arcft", "groups", "arcft_unsloth"):
        losses = train_here(config, prepared, examples, clock, folder)
    else:
        losses = train_there(way, unsloth, arguments, examples, clock, folder)
    measured = examples[arguments.warm_up * arguments.batch :]
    tokens = sum(len(example.input_ids) for example in measured)
    return {
        "tokens_per_second": tokens / clock.seconds,
        "step_seconds": clock.seconds / arguments.steps,
        "tokens": tokens,
        "longest": max(len(example.input_ids) for example in measured),
        "peak_gib": clock.peak_bytes / 2**30,
        "loss": sum(losses) / len(losses),
    }


def make_config(way: str, steps: int, arguments: argparse.Namespace) -> Any:
    """The overrides of train.py for this setup."""
    from data_pipeline import make_config

    overrides = [f"model={'local' if arguments.model[0] == 'tiny' else arguments.model[0]}"]
    overrides += [f"model.path='{arguments.base}'", "prompt=grid_only", "encoder=minimal", "showcase=none"]
    overrides += [
        f"model.recommended.training.max_seq_length={arguments.length}",
        f"lora.r={arguments.rank}",
        f"lora.alpha={arguments.rank}",
    ]
    overrides += ["scheduler=constant", "scheduler.warmup_ratio=0.0", f"training.learning_rate={LEARNING_RATE}"]
    overrides += [f"training.max_steps={steps}", f"training.per_device_train_batch_size={arguments.batch}"]
    overrides += [f"training.save_steps={10 * steps}", f"training.logging_steps={steps}", "data.held_out=0"]
    overrides += ["training.generation_tasks=0"]
    if way == "groups":
        overrides.append(f"training.max_batch_tokens={GROUP_TOKENS}")
    if way == "arcft_unsloth":
        overrides.append("model.backend=unsloth")
    return make_config(overrides)


def make_clock(warm_up: int, steps: int) -> Any:
    """A callback that measures the time from the end of step `warm_up` to the end of step `steps`."""
    import resource

    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = 0.0
        peak_bytes = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step not in (warm_up, steps):
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if state.global_step == warm_up:
                self._begun = time.perf_counter()
                # The warm-up steps count too: they are as long.
                return
            self.seconds = time.perf_counter() - self._begun
            if torch.cuda.is_available():
                self.peak_bytes = torch.cuda.max_memory_allocated()
            else:
                self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return Clock()


def train_here(config: Any, prepared: Any, examples: list[Example], clock: Any, folder: Path) -> list[float]:
    """arcft's trainer, built as train.py builds it."""
    from arcft.checkpoints import Origin
    from arcft.models.limits import embedding_rows
    from arcft.runs.setup.build import choose_device
    from arcft.runs.train import build_model
    from arcft.text.padding import choose_pad_token
    from arcft.training.arguments import make_training_arguments
    from arcft.training.saving import Saving
    from arcft.training.trainer import ArcftTrainer

    device = choose_device()
    model, fingerprint = build_model(config, device)
    origin = Origin(base_model="", base_fingerprint=fingerprint, data_fingerprint="", seed=0)
    trainer = ArcftTrainer(
        model=model,
        args=make_training_arguments(config.training, folder, device),
        train_dataset=examples,  # type: ignore[arg-type]
        eval_dataset=None,
        pad_id=choose_pad_token(prepared.tokenizer, embedding_rows(model)),
        optimizer_config=config.optimizer,
        scheduler_config=config.scheduler,
        eval_steps=config.training.max_steps,
        saving=Saving(tokenizer=prepared.tokenizer, run_config={}, origin=origin, save_total_limit=1),
        max_batch_tokens=config.training.max_batch_tokens,
        callbacks=[clock],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_there(
    way: str, unsloth: Any, arguments: argparse.Namespace, examples: list[Example], clock: Any, folder: Path
) -> list[float]:
    """transformers' Trainer with its defaults."""
    import torch
    from transformers import Trainer, TrainingArguments

    on_gpu = torch.cuda.is_available()
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=arguments.warm_up + arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        logging_steps=arguments.warm_up + arguments.steps,
        disable_tqdm=True,
        report_to=[],
    )
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]
    trainer = Trainer(
        model=their_model(way, unsloth, arguments),
        args=settings,
        train_dataset=rows,
        data_collator=padded,
        callbacks=[clock],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        attn_implementation="flash_attention_2" if way == "hf_flash" else "sdpa",
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
    print(f"\n{name}\n\n{'':36}{'tokens/s':>10}{'vs hf':>9}{'ms/step':>11}{'GiB':>8}{'loss':>8}")
    for row in rows:
        if "failure" in row:
            print(f"{TITLES[row['way']]:36} {row['failure']}")
            continue
        ratio = "" if base is None else f"{row['tokens_per_second'] / base:.2f}x"
        print(
            f"{TITLES[row['way']]:36}{row['tokens_per_second']:10.0f}{ratio:>9}{row['step_seconds'] * 1000:11.0f}"
            f"{row['peak_gib']:8.2f}{row['loss']:8.3f}"
        )
    print()


if __name__ == "__main__":
    main()
