"""Architectures that need care, through the programs: train, resume, evaluate, adapt, and start from what was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from arcft.checkpoints import last_checkpoint
from arcft.errors import DecodingError
from arcft.models.bundled import bundled_folder
from tests.support.evaluate_command import answers, evaluated, run_json
from tests.support.families import family_model
from tests.support.train_command import QUIET, TEN_TASKS, history, run_train

KINDS = ["mixtral", "gpt_neo", "bloom", "mamba", "bart", "lfm2", "qwen3_next"]
EAGER = {"gpt_neo", "bloom", "mamba"}
SHORT = "inference.max_new_tokens=12"


def saved_model(kind: str, folder: Path) -> Path:
    """A small random model with the bundled tokenizer."""
    bundled = bundled_folder("bundled:tiny")
    vocabulary = json.loads((bundled / "config.json").read_text())["vocab_size"]
    encoder = {"is_decoder": False} if kind == "bert" else {}
    model = family_model(kind, vocab_size=vocabulary, max_position_embeddings=2048, **encoder)
    model.save_pretrained(folder)
    for file in bundled.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def words_for(kind: str, model: Path) -> list[str]:
    return [
        "model=local",
        f"model.path='{model}'",
        f"model.attn_implementation={'eager' if kind in EAGER else 'sdpa'}",
        *TEN_TASKS,
        *QUIET,
        "encoder=minimal",
        "prompt=grid_only",
        SHORT,
        "training.max_steps=4",
        "training.eval_steps=2",
        "training.save_steps=2",
        "training.generation_tasks=1",
        "training.per_device_train_batch_size=2",
        "training.learning_rate=1e-3",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_training_to_adapted_answers(kind: str, tmp_path: Path) -> None:
    words = words_for(kind, saved_model(kind, tmp_path / "model"))
    run = tmp_path / "run"
    assert run_train(run, *words) == 0
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    assert run_train(resumed, f"resume='{resumed}'") == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (resumed / "checkpoint-4" / name).read_bytes() == (run / "checkpoint-4" / name).read_bytes()
    assert run_train(tmp_path / "started", *words, f"lora.start='{run}'", "training.generation_tasks=0") == 0

    assert answers(evaluated(tmp_path / "whole", f"checkpoint='{run}'", SHORT))
    ttft = ["ttft=per_task", "ttft.max_steps=2", "ttft.keep_adapters=true", "selection=score"]
    adapted = evaluated(tmp_path / "adapted", f"checkpoint='{run}'", SHORT, *ttft)
    assert not run_json(adapted).get("failed")
    kept = f"adapters='{adapted}/adapters/*'"
    again = evaluated(tmp_path / "again", f"checkpoint='{run}'", kept, SHORT)
    assert [one[:3] for one in answers(again)] == [one[:3] for one in answers(adapted)]


def test_what_the_config_decides_is_refused_before_the_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(kind: str, *overrides: str) -> str:
        model = tmp_path / kind
        if not model.exists():
            saved_model(kind, model)
            (model / "model.safetensors").unlink()
        capsys.readouterr()
        assert run_train(tmp_path / "run", *words_for(kind, model), *overrides) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    search = "inference=search"
    assert "inference=search needs arcft's own decoder" in refusal("mamba", search)
    assert "inference=search needs arcft's own decoder" in refusal("mamba", search, "dry_run=true")
    assert "model.attn_implementation=sdpa: models of type bloom" in refusal("bloom", "model.attn_implementation=sdpa")
    flash = refusal("llama", "model.attn_implementation=flash_attention_2")
    assert "flash-attn, which is not installed here; use model.attn_implementation=sdpa" in flash
    assert "of type roberta computes other probabilities" in refusal("roberta")
    assert 'set "is_decoder": true in its config.json' in refusal("bert", "training.generation_tasks=0")


def test_an_evaluation_that_fails_leaves_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_for("llama", saved_model("llama", tmp_path / "model"))
    with pytest.MonkeyPatch.context() as patch:

        def fail(*args: object, **options: object) -> None:
            raise DecodingError("no answer today")

        patch.setattr("arcft.runs.training.callbacks.predict_and_score", fail)
        assert run_train(tmp_path / "run", *words, "training.save_steps=100") == 1
    assert "no answer today" in capsys.readouterr().err
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    # Resumed, it makes up for the evaluation, and goes on.
    assert run_train(tmp_path / "run", f"resume='{tmp_path / 'run'}'") == 0
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-4"
    assert [line["step"] for line in history(tmp_path / "run") if "eval_accuracy" in line] == [2, 4]


def test_packing_where_examples_would_see_each_other_is_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_for("lfm2", saved_model("lfm2", tmp_path / "model")), "training.generation_tasks=0"]
    assert run_train(tmp_path / "padded", *words) == 0
    capsys.readouterr()
    assert run_train(tmp_path / "packed", *words, "training.packing=true") == 0
    text = " ".join("".join(capsys.readouterr()).split())
    assert "training.packing=true: examples are padded instead" in text
    assert "would see each other in a model of type lfm2" in text
    assert history(tmp_path / "packed") == history(tmp_path / "padded") != []
