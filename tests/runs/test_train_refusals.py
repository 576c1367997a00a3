"""What train.py can't use is refused with one clear message, and leaves nothing behind but Hydra's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_train_run import real_tasks, write_kaggle
from tests.support.train_command import ARCHITECTURES, QUICK, QUIET, ROOT, TASK_IDS, run_train


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, which must refuse, and return its message."""

    def run(*overrides: str) -> str:
        folder = tmp_path / "refused"
        assert run_train(folder, *overrides) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert shown.endswith("\n")
        assert shown.count("error: ") == 1
        assert "Traceback" not in shown
        assert not folder.exists()
        return shown.removeprefix("error: ").removesuffix("\n")

    return run


ROWS = "{name: RowNumberEncoder, base: {name: MinimalGridEncoder}}"
NESTED_WRONGLY = f"{{name: ReplaceNumberEncoder, base: {ROWS}}}".replace(": ", ":")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.task_ids=['007bbfb8']"], ["data.task_ids: no task has the id '007bbfb8'; the nearest are 007bbfb7"]),
        (["data.task_ids=['1e77']"], ["1e77", "YAML", "\"data.task_ids=['007bbfb7']\""]),
        (["data.task_ids=[00576224]"], ["00576224 is the text of a number", "\"data.task_ids=['007bbfb7']\""]),
        (["data.task_ids=[855e0971]"], ["data.task_ids[0]=inf: expected text", "\"data.task_ids=['007bbfb7']\""]),
        ([f"encoder.grid={NESTED_WRONGLY}"], ["ReplaceNumberEncoder", "RowNumberEncoder"]),
        (["encoder.grid.name=os.system"], ["os.system"]),
        (["encoder.grid._target_=TinyGridEncoder"], ["TinyGridEncoder"]),
        (["+encoder.grid.separator=x"], ["separator"]),
        (
            ["training.max_seq_length=20", "data.max_tokens=null"],
            ["400 of 400 tasks, more than 90%, take more than 20 tokens", "training.max_seq_length"],
        ),
        (
            ["training.max_seq_length=20", "training.drop_demonstrations=true"],
            ["too long for training.max_seq_length=20; raise training.max_seq_length"],
        ),
        (
            ["training.max_seq_length=640", "inference.max_seq_length=641"],
            ["inference.max_seq_length=641 is above training.max_seq_length=640", "drop it, or raise training.max_seq"],
        ),
        (
            ["model.init=pretrained", "model.seed=3"],
            ["model.seed=3 has no effect with model.init=pretrained; drop it, or use model.init=random"],
        ),
        (["data.held_out=400"], ["data.held_out=400 of", "leaves 0 to train on"]),
        (["data=kaggle", "data.path=/no/tasks.json"], ["/no/tasks.json"]),
        (["data=folder", "data.path=/no/tasks"], ["/no/tasks: no such folder"]),
        (["data.task_ids=/no/ids.txt"], ["/no/ids.txt"]),
        (["model.path=/no/model"], ["model.path=/no/model: there is no such file or folder"]),
        (["model.path=bundled:small"], ["model.path=bundled:small: the bundled models are bundled:tiny"]),
        (["model=local", f"model.path={ROOT / 'tests'}"], [f"model.path={ROOT / 'tests'}"]),
        (["lora.target_modules=[q_proj,w_proj]"], ["lora.target_modules", "w_proj", "q_proj"]),
        (["model.train_modules=[lm_heads]"], ["model.train_modules", "lm_heads", "lm_head"]),
        (["training.dtype=float16"], ["training.dtype=float16", "training.dtype=float32 or bfloat16"]),
        (["lora.start=/no/run", "data=leave_one_out"], ["/no/run: there is no such folder"]),
        (
            ["model.backend=unsloth", "model.init=pretrained", "model.positions=none"],
            ["model.backend=unsloth needs a CUDA GPU"],
        ),
        (
            [
                "model.backend=unsloth",
                "model.init=pretrained",
                "model.positions=none",
                "lora=pissa",
                "lora.use_dora=true",
            ],
            ["lora.init_lora_weights=pissa: unsloth has no such initial weights", "lora.use_dora=true: unsloth has no"],
        ),
        (["+lora.rank=3"], ["lora.rank: there is no such key; did you mean"]),
        (["lora.rank=3"], ["lora.rank: there is no such key; did you mean"]),
        (["lora.r=0", "scheduler.warmup_ratio=1.5"], ["2 problems in the config:", "lora.r=0", "warmup_ratio=1.5"]),
        (["lora=lorra"], ["lora/lorra", "default", "rslora"]),
        (["data.limit='${data.nothing}'"], ["data.nothing"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value[0], str) and "=" in value[0] else "",
)
def test_options(refusal: Callable[..., str], overrides: list[str], words: list[str]) -> None:
    message = refusal(*QUIET, *overrides)
    for word in words:
        assert word in message
    assert len(message.splitlines()) <= 9  # a line for each option that there is


def test_a_tokenizer_that_merges_cells(refusal: Callable[..., str], tokenizer_folder: Callable[[str], Path]) -> None:
    gpt2 = tokenizer_folder("gpt2")
    model = ["model=local", f"model.path={ARCHITECTURES / 'llama'}", "model.init=random", f"model.tokenizer={gpt2}"]
    message = refusal(*QUIET, *model, "encoder=minimal")
    assert message.startswith(f"{gpt2}: this tokenizer merges or splits cells of the grid: '")
    assert message.endswith("; use encoder=separator, or set encoder.allow_uneven_tokens=true to go on all the same")
    assert "\n" not in message


def test_a_tokenizer_of_another_model(refusal: Callable[..., str], tokenizer_folder: Callable[[str], Path]) -> None:
    qwen = tokenizer_folder("qwen2_5")
    small = [word for word in QUICK if not word.startswith("model.tokenizer")]
    message = refusal(*small, f"model.tokenizer={qwen}", "model.positions=none", "training.max_seq_length=1024")
    assert message.startswith(f"model.tokenizer={qwen}: writes token ")
    assert message.endswith("has embeddings for 448 tokens only; give the tokenizer that belongs to it")


def ragged(task: dict[str, Any]) -> None:
    task["train"][0]["input"][1].append(3)


def color_ten(task: dict[str, Any]) -> None:
    task["train"][1]["output"][0][0] = 10


def row_31(task: dict[str, Any]) -> None:
    task["test"][0]["input"] = [[0]] * 31


def fraction(task: dict[str, Any]) -> None:
    task["train"][0]["input"][0][0] = 0.5


def no_test(task: dict[str, Any]) -> None:
    task["test"] = []


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (ragged, ["train pair 1, input", "row"]),
        (color_ten, ["train pair 2, output", "10"]),
        (row_31, ["test pair 1, input", "31"]),
        (fraction, ["train pair 1, input", "0.5"]),
        (no_test, ["test is empty"]),
    ],
)
@pytest.mark.parametrize("kind", ["kaggle", "folder"])
def test_task_files(
    refusal: Callable[..., str], tmp_path: Path, kind: str, break_it: Callable[[Any], None], words: list[str]
) -> None:
    path = write_kaggle(tmp_path, real_tasks(*TASK_IDS[:3]))
    tasks = json.loads(path.read_text())
    break_it(tasks[TASK_IDS[1]])
    if kind == "kaggle":
        path.write_text(json.dumps(tasks))
    else:
        path = tmp_path / "tasks"
        path.mkdir()
        for name, task in tasks.items():
            (path / f"{name}.json").write_text(json.dumps(task))
    message = refusal(*QUIET, f"data={kind}", f"data.path={path}")
    assert message.startswith(str(path))
    for word in [TASK_IDS[1], *words]:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": {"train": [], "test": []}, "a": {}}', ["'a'"]),
        ('{"a": {"train": [{"input": [[1]], "out', ["not valid JSON at line 1", "cut off"]),
        ("{}", ["no task in it"]),
        ("", ["not valid JSON"]),
        ("[1, 2]", ["holds a list where an object of tasks by id is expected"]),
    ],
    ids=["duplicate id", "truncated", "no task", "empty", "a list"],
)
def test_broken_files(refusal: Callable[..., str], tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content)
    message = refusal(*QUIET, "data=kaggle", f"data.path={path}")
    assert message.startswith(str(path))
    for word in words:
        assert word in message
