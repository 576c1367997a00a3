"""`arcft export`, from the command line: three formats of real small runs, each read back by what it is for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from arcft.checkpoints import Origin, last_checkpoint, read_run_yaml, write_checkpoint, write_run_yaml
from arcft.config.export import ExportConfig
from arcft.files import file_sha256
from arcft.models.load import load_tokenizer
from arcft.runs.exporting.card import Facts, write_card
from arcft.runs.exporting.checks import ExportError, Probe, check, probe_of
from arcft.runs.exporting.write import warn_about_memory
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.runs.setup.restore import base_model, restored_builder
from tests.support.byte_level import byte_level_tokenizer
from tests.support.evaluate_command import answers, change_byte, evaluated, trained
from tests.support.export_command import logits_of_run, run_export, start_export
from tests.support.train_command import QUIET, TEN_TASKS, run_train

WITH_PEFT_ALONE = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[3])
assert not any(name.startswith("arcft") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with modules trained whole and a tied head."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from a local folder, whose tokenizer is byte-level."""
    return train_local(tmp_path_factory.mktemp("local"))


def train_local(folder: Path, *overrides: str) -> Path:
    base, run = folder / "base", folder / "run"
    tokenizer = byte_level_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 7, num_key_value_heads=2, initializer_range=0.1, eos_token_id=7, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    words = [
        "model=local",
        f"model.path={base}",
        *TEN_TASKS,
        *QUIET,
        "encoder=minimal",
        "prompt=short",
        "inference.max_new_tokens=8",
        "training.max_seq_length=900",
        "training.max_steps=4",
        "training.eval_steps=4",
        "training.save_steps=4",
        "training.generation_tasks=0",
        "training.per_device_train_batch_size=2",
        "training.learning_rate=1e-2",
        *overrides,
    ]
    assert run_train(run, *words) == 0
    return run


def with_peft_alone(folder: Path, inputs: dict[str, torch.Tensor], tmp_path: Path) -> torch.Tensor:
    """The logits of an adapter, in a process that has no arcft, away from its folder, and without a network."""
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [
        sys.executable,
        "-c",
        WITH_PEFT_ALONE,
        str(folder),
        str(tmp_path / "inputs.pt"),
        str(tmp_path / "out.pt"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    return torch.load(tmp_path / "out.pt")


def check_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    del found["manifest.json"]
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == found
    return manifest


def test_merged_weights_answer_as_the_checkpoint(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert run_export(f"checkpoint={run}", "format=merged", f"out={out}") == 0
    inputs, expected = logits_of_run(run)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)
    manifest = check_manifest(out)
    assert manifest["step"] == 6
    assert manifest["base_fingerprint"] == open_checkpoint(run).checkpoint.manifest["base_fingerprint"]
    # As the model card says.
    card = (out / "README.md").read_text()
    (command,) = [line.strip() for line in card.splitlines() if line.startswith("    arcft evaluate")]
    assert "model.path=merged " in command
    words = command.replace("model.path=merged", f"model.path={out}").split()[2:]
    held_out = json.loads((evaluated(tmp_path / "a", f"checkpoint={run}") / "metrics.json").read_text())["evaluated"]
    names = f"data.task_ids=[{','.join(map(repr, held_out))}]"
    own = evaluated(tmp_path / "b", *words, "data=arc1", names)
    assert [one[:3] for one in answers(own)] == [one[:3] for one in answers(tmp_path / "a")]


def test_the_card_has_scores_and_settings(run: Path, tmp_path: Path) -> None:
    evaluated(tmp_path / "scored", f"checkpoint={run}")
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Evaluated on 2 tasks, " in card
    assert "| vote_2 | 0 |" in card
    assert "| adapter | rank 16, alpha 32, dropout 0, on all-linear |" in card
    assert "| trained whole | embed_tokens, lm_head, input_layernorm" in card
    assert "8 tasks train, 2 tasks held out" in card
    assert "not known; see where it is from" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(run: Path, tmp_path: Path, dtype: str) -> None:
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}", f"dtype={dtype}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_an_adapter_whose_base_peft_can_not_find_brings_it_along(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    assert run_export(f"checkpoint={run}", "format=adapter", f"out={out}") == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "base")
    inputs, expected = logits_of_run(run)
    assert torch.allclose(with_peft_alone(out, inputs, tmp_path), expected, atol=1e-4)
    check_manifest(out)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_is_exported_dense(tmp_path: Path, quantization: str) -> None:
    run = trained(tmp_path / "run", f"model.quantization={quantization}", "lora=olora", "model.train_modules=[]")
    inputs, expected = logits_of_run(run)
    assert run_export(f"checkpoint={run}", "format=adapter", f"out={tmp_path / 'adapter'}") == 0
    assert torch.allclose(with_peft_alone(tmp_path / "adapter", inputs, tmp_path), expected, atol=1e-4)
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'merged'}") == 0
    with torch.no_grad():
        assert torch.allclose(
            AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(**inputs).logits, expected, atol=1e-4
        )
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pissa", "dora"])
def test_an_adapter_of_a_local_base_names_it(tmp_path: Path, form: str) -> None:
    run = train_local(tmp_path, f"lora={form}")
    out = tmp_path / "out"
    assert run_export(f"checkpoint={run}", "format=adapter", f"out={out}") == 0
    assert not (out / "base").exists()
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert (settings["r"], settings["init_lora_weights"]) == (32 if form == "pissa" else 16, True)
    inputs, expected = logits_of_run(run)
    assert torch.allclose(with_peft_alone(out, inputs, tmp_path), expected, atol=1e-4)
    assert "license: mit" in (out / "README.md").read_text()


def test_a_gguf_file_answers_as_the_checkpoint(local_run: Path, tmp_path: Path) -> None:
    assert run_export(f"checkpoint={local_run}", "format=gguf", f"out={tmp_path / 'out'}") == 0
    file = tmp_path / "out" / "local-F32.gguf"
    plain = evaluated(tmp_path / "a", f"checkpoint={local_run}")
    held_out = json.loads((plain / "metrics.json").read_text())["evaluated"]
    names = f"data.task_ids=[{','.join(map(repr, held_out))}]"
    words = [f"model.path={file}", "encoder=minimal", "prompt=short", "inference.max_seq_length=900"]
    own = evaluated(tmp_path / "b", "model=local", *words, "data=arc1", names)
    assert [one[:3] for one in answers(own)] == [one[:3] for one in answers(plain)]
    assert run_export(f"checkpoint={local_run}", "format=gguf", "dtype=q8_0", f"out={tmp_path / 'q'}") == 0
    assert (tmp_path / "q" / "local-Q8_0.gguf").stat().st_size < file.stat().st_size / 2
    check_manifest(tmp_path / "q")


def test_a_run_of_the_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run", "lora=none", "model.train_modules=[]")
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}") == 0
    inputs, expected = logits_of_run(run)
    with torch.no_grad():
        assert torch.allclose(
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**inputs).logits, expected, atol=1e-5
        )
    assert run_export(f"checkpoint={run}", "format=adapter", f"out={tmp_path / 'no'}") == 1
    assert "has no adapter, its run trained the whole model (lora=none); use format=merged" in capsys.readouterr().err


def test_a_pruned_vocabulary_is_exported_whole(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "model.prune_vocabulary=true")
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == 448
    inputs, expected = logits_of_run(run)
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)


def test_positions_of_the_tiny_model_stay_usable(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["model=tiny", *TEN_TASKS, *QUIET, "training.max_steps=2", "training.generation_tasks=0"]
    assert run_train(run, *words, "training.per_device_train_batch_size=2") == 0
    out = tmp_path / "out"
    assert run_export(f"checkpoint={run}", f"out={out}") == 0
    card = (out / "README.md").read_text()
    assert "model.positions=grid encoder=minimal prompt=grid_only" in card
    assert "license: apache-2.0" in card
    short = "inference.max_new_tokens=40"
    plain = evaluated(tmp_path / "a", f"checkpoint={run}", short)
    held_out = json.loads((plain / "metrics.json").read_text())["evaluated"]
    words = ["model=local", f"model.path={out}", "model.positions=grid", "encoder=minimal", "prompt=grid_only"]
    names = f"data.task_ids=[{','.join(map(repr, held_out))}]"
    own = evaluated(tmp_path / "b", *words, "data=arc1", names, short, "inference.max_seq_length=256")
    assert [one[:3] for one in answers(own)] == [one[:3] for one in answers(plain)]


def test_what_can_not_be_exported_is_refused(
    run: Path, local_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert run_export(*words) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    taken, free = tmp_path / "taken", f"out={tmp_path / 'deep' / 'free'}"
    taken.mkdir()
    assert f"out={taken}: exists already" in refusal(f"checkpoint={run}", f"out={taken}")
    assert "there is no such folder" in refusal("checkpoint=/nowhere", free)
    assert "checkpoint is not set" in refusal(free)
    assert "out is not set" in refusal(f"checkpoint={run}")
    assert "format=gguf: the model was trained with model.positions=grid" in refusal(
        f"checkpoint={run}", "format=gguf", free
    )
    assert "dtype=q8_0 with format=merged" in refusal(f"checkpoint={run}", "dtype=q8_0", free)
    pushed = refusal(f"checkpoint={local_run}", "format=adapter", "push_to_hub=me/it", free)
    assert "push_to_hub=me/it" in pushed
    assert "an adapter is written in float32" in refusal(
        f"checkpoint={local_run}", "format=adapter", "dtype=bfloat16", free
    )
    assert "a repository is OWNER/NAME" in refusal(f"checkpoint={run}", "push_to_hub=it", free)
    damaged = tmp_path / "damaged"
    shutil.copytree(last_checkpoint(run), damaged)
    change_byte(damaged / "adapter_model.safetensors")
    assert "was changed" in refusal(f"checkpoint={damaged}", free)


def test_an_exported_model_stops_where_answers_end(local_run: Path, tmp_path: Path) -> None:
    assert json.loads((local_run.parent / "base" / "generation_config.json").read_text())["eos_token_id"] == 7
    assert run_export(f"checkpoint={local_run}", f"out={tmp_path / 'out'}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    run = open_checkpoint(local_run)
    end_ids = restored_builder(run, load_tokenizer(base_model(run)), 256).tokenization.end_ids
    assert model.generation_config.eos_token_id == end_ids != [7]
    model.lm_head = Likeliest(model.lm_head, end_ids[0])
    found = model.generate(torch.arange(3, 9)[None], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert found[0, 6:].tolist() == end_ids[:1]


class Likeliest(torch.nn.Module):
    """A head that prefers one token."""

    def __init__(self, head: torch.nn.Module, token: int) -> None:
        super().__init__()
        self.head, self.token = head, token

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        logits[..., self.token] += 100
        return logits


def test_a_card_and_a_manifest_name_no_folder_of_this_machine(local_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_export(f"checkpoint={local_run}", f"out={out}") == 0
    for name in ("README.md", "manifest.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert str(local_run.parent) not in text
    assert "| base model | base |" in (out / "README.md").read_text()
    opened = open_checkpoint(local_run)
    facts = Facts(what="it", difference=0.0, prompts_from="nothing")
    write_card(tmp_path / "card.md", ExportConfig(checkpoint="c", out="o", push_to_hub="me/it"), opened, out, facts)
    assert "    arcft evaluate model=local model.path=me/it " in (tmp_path / "card.md").read_text()


def test_more_memory_than_there_is_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 4, "vocab_size": 200_000}
    warn_about_memory(LlamaConfig(**sizes), trust_remote_code=False)
    told = capsys.readouterr()
    assert "warning: needs about " in told.out + told.err
    assert "available; export where there is more memory" in told.out + told.err


def test_a_base_model_that_has_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_local(tmp_path)
    moved = (tmp_path / "base").rename(tmp_path / "moved")
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}") == 1
    assert "If it lies elsewhere now: base_model=DIR" in capsys.readouterr().err
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'out'}", f"base_model={moved}") == 0
    change_byte(moved / "model.safetensors", lambda size: size - 10)
    assert run_export(f"checkpoint={run}", f"out={tmp_path / 'no'}", f"base_model={moved}") == 1
    assert "so it is another model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out", "run"]


def test_without_the_runs_data_random_tokens_are_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    checkpoint = open_checkpoint(run)
    assert checkpoint.tasks["held_out"]
    # Tasks that no set has: as if the file of tasks had moved.
    origin_fields = ("base_model", "base_fingerprint", "data_fingerprint", "seed")
    origin = Origin(**{name: checkpoint.checkpoint.manifest[name] for name in origin_fields})
    content = read_run_yaml(checkpoint.checkpoint.path)
    content["tasks"] = {"train": ["gone"], "held_out": ["gone"]}
    with write_checkpoint(tmp_path / "run", 7, origin) as partial:
        for path in checkpoint.checkpoint.path.iterdir():
            if path.name not in ("manifest.json", "run.yaml"):
                shutil.copy(path, partial)
        write_run_yaml(partial, content)
    assert run_export(f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}") == 0
    assert "the export is checked on random tokens instead" in capsys.readouterr().out
    assert "On 4 rows of random tokens" in (tmp_path / "out" / "README.md").read_text()


def test_other_logits_are_refused() -> None:
    reference = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    assert check(reference + 1e-4, reference, "it", "float32") == pytest.approx(1e-4, rel=0.1)
    moved = reference.clone()
    moved[7, 3] += 0.1
    with pytest.raises(ExportError, match=r"it does not compute what was trained: a logit differs by 0\.097 .*float32"):
        check(moved, reference, "it", "float32")
    for bad in (torch.full_like(reference, torch.nan), reference[:, :-1]):
        with pytest.raises(ExportError, match="does not compute what was trained"):
            check(bad, reference, "it", "q8_0")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_export_leaves_nothing_that_looks_complete(run: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start_export(f"checkpoint={run}", f"out={out}", cwd=tmp_path)
    partial = tmp_path / ".out.partial"
    end = time.monotonic() + 90
    while not partial.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert not out.exists()
    assert partial.exists() == (number == signal.SIGKILL)
    assert run_export(f"checkpoint={run}", f"out={out}") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_format_has_its_options() -> None:
    for changes, problems in (
        ({}, []),
        ({"dtype": "q8_0", "format": "gguf"}, []),
        ({"private": False}, ["private=false has no effect without push_to_hub=OWNER/NAME"]),
    ):
        config = ExportConfig(**{"checkpoint": "c", "out": "o", **changes})  # type: ignore[arg-type]
        assert list(config.problems()) == problems


def test_prompts_are_of_the_runs_own_tasks(run: Path) -> None:
    opened = open_checkpoint(run)
    builder = restored_builder(opened, load_tokenizer(base_model(opened)), 256)
    probe = probe_of(opened, builder, 448)
    assert isinstance(probe, Probe)
    assert probe.prompts_from == "2 tasks of the run's data"
    assert all(builder.tokenization.end_id in ids[-1:] for ids in probe.token_ids)


@pytest.mark.slow
def test_a_real_model_as_an_adapter_and_as_a_gguf_file(smollm2_gguf: Path, tmp_path: Path) -> None:
    """SmolLM2-135M from its 4-bit GGUF file."""
    run = tmp_path / "run"
    words = [
        "model=smollm2_135m",
        f"model.path={smollm2_gguf}",
        *TEN_TASKS,
        *QUIET,
        "encoder=minimal",
        "prompt=grid_only",
        "training.max_seq_length=512",
        "training.max_steps=1",
        "training.generation_tasks=0",
        "training.per_device_train_batch_size=1",
        "training.learning_rate=1e-3",
        "lora.init_lora_weights=false",
    ]
    assert run_train(run, *words) == 0
    inputs, expected = logits_of_run(run)
    for name, more in (("adapter", []), ("gguf", ["dtype=q8_0"])):
        assert run_export(f"checkpoint={run}", f"format={name}", f"out={tmp_path / name}", *more) == 0
        check_manifest(tmp_path / name)
    assert torch.allclose(with_peft_alone(tmp_path / "adapter", inputs, tmp_path), expected, atol=1e-2)
    assert (tmp_path / "gguf" / "smollm2_135m-Q8_0.gguf").stat().st_size < 150e6
