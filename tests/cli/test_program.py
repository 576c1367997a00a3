"""The program `arcft`: subcommands, versions, what it says to a wrong one, and hints that name what was typed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import arcft
from arcft.cli import program, version
from arcft.runs.common import command as command_module
from arcft.runs.common.command import command
from tests.support.paths import ROOT


def arcft_program(*words: str, cwd: Path) -> tuple[int, str, str]:
    """`python -m arcft` as a process of its own: exit code, stdout, stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "arcft", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


HELP = """\
usage: arcft COMMAND ...

  train          fine-tune a model
  evaluate       predict, select, score, write a submission and a report
  export         write a trained model for transformers, PEFT or llama.cpp
  speed          measure how fast models read and write, and what fits a time budget
  study          compare the settings of a sweep, or of any runs
  contamination  find the problems that two sets share

arcft COMMAND --help shows the options of a command, arcft --version what is installed.
"""


def called(monkeypatch: pytest.MonkeyPatch, *words: str, started_as: str = "/venv/bin/arcft") -> int:
    monkeypatch.setattr(sys, "argv", [started_as, *words])
    try:
        program.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, *words) == 0
    assert capsys.readouterr() == (HELP, "")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "arcft trian: there is no such command; did you mean train? "),
        ("evalute", "arcft evalute: there is no such command; did you mean evaluate? "),
        ("bundel", "arcft bundel: there is no such command; "),
    ],
)
def test_an_unknown_command_names_the_nearest(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, word) == 2
    names = "train, evaluate, export, speed, study, contamination"
    assert capsys.readouterr().err == f"error: {message}the commands are {names}\n"


def test_an_option_in_place_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "lora.r=16") == 2
    message = "error: lora.r=16 comes before a command; type: arcft train lora.r=16\n"
    assert capsys.readouterr().err == message


def test_every_command_has_a_main() -> None:
    for entry in program.COMMANDS.values():
        assert callable(__import__(entry.module, fromlist=["main"]).main)


@pytest.mark.parametrize(
    ("started_as", "train", "contamination"),
    [
        ("train.py", "python train.py", "arcft contamination"),
        ("/home/me/arcft/evaluate.py", "python train.py", "arcft contamination"),
        ("/venv/bin/arcft-evaluate", "arcft-train", "arcft contamination"),
        ("arcft evaluate", "arcft train", "arcft contamination"),
        ("python -m arcft evaluate", "python -m arcft train", "python -m arcft contamination"),
        ("/venv/bin/pytest", "python train.py", "arcft contamination"),
        ("/home/me/my arcft", "python train.py", "arcft contamination"),
    ],
)
def test_hints_name_what_was_typed(
    started_as: str, train: str, contamination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started_as, "resume=x"])
    assert (command("train"), command("contamination")) == (train, contamination)


@pytest.mark.parametrize(
    ("started_as", "other"), [("/venv/bin/arcft", "arcft"), ("/x/arcft/__main__.py", "python -m arcft")]
)
def test_a_refusal_names_the_other_command(
    started_as: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("job: train\nconfig: {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "evaluate", f"resume={tmp_path}", started_as=started_as) == 1
    assert capsys.readouterr().err == (
        f"error: resume={tmp_path}: holds no evaluate run; if it is the other kind, use {other} train\n"
    )


def test_hints_of_an_installed_package_name_no_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A launcher's own program starts the job, and there is no checkout."""
    monkeypatch.setattr(sys, "argv", ["/venv/lib/python3.11/site-packages/submitit/core/_submit.py", "/jobs"])
    assert command("train") == "python train.py"
    monkeypatch.setattr(command_module, "PACKAGE", tmp_path / "site-packages" / "arcft")
    assert (command("train"), command("evaluate")) == ("arcft train", "arcft evaluate")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["contamination", "--help"], ["nothing"]])
def test_a_reader_that_has_gone_is_no_error(words: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "arcft", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    if words == ["nothing"]:  # it prints to stderr alone
        assert done.returncode == 2
    else:
        assert done.stderr == b""
        # argparse leaves it at that.
        assert done.returncode == (0 if words[0] == "contamination" else 128 + signal.SIGPIPE)


def test_version_says_what_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"arcft {arcft.__version__}"
    assert lines[1] == f"python {platform.python_version()} on {platform.platform()}"
    assert f"torch {torch.__version__}" in lines
    assert [line for line in lines if line.startswith("CPU: ")] == [
        f"CPU: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    ]
    gpus = torch.cuda.device_count()
    assert len([line for line in lines if line.startswith("GPU")]) == max(gpus, 1)
    assert ("GPU: none that torch can use" in lines) == (gpus == 0)
    assert [line for line in lines if line.startswith("extra")]


def test_extras_are_read_from_the_metadata() -> None:
    requirements = [
        "torch<2.14,>=2.9",
        "bitsandbytes>=0.50; sys_platform == 'linux'",
        "ray; extra == 'ray'",
        "hydra-ray-launcher; extra == 'ray'",
        'vllm>=0.10; extra == "vllm"',
        "pytest; extra == 'dev'",
    ]
    assert version.extras(requirements) == {"ray": ["ray", "hydra-ray-launcher"], "vllm": ["vllm"]}


def test_missing_and_installed_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"ray": "2.60.0", "arcft": "0.1.0"}
    monkeypatch.setattr(version, "_version", found.get)
    monkeypatch.setattr(
        version.importlib.metadata, "requires", lambda name: ["ray; extra == 'ray'", "vllm; extra == 'vllm'"]
    )
    assert list(version.lines())[-2:] == ["extra ray: ray 2.60.0", "extra vllm: missing vllm"]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['arcft']; from arcft.cli import program; program.main(); print('torch' in sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_the_subcommands_run(tmp_path: Path) -> None:
    code, out, err = arcft_program("--help", cwd=tmp_path)
    assert (code, out, err) == (0, HELP.replace("arcft COMMAND", "python -m arcft COMMAND").replace(
        "arcft --version", "python -m arcft --version"
    ), "")  # fmt: skip
    code, out, err = arcft_program("train", "--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "lora.r" in out or "== Config ==" in out
    code, out, err = arcft_program("train", "lora.r=0", cwd=tmp_path)
    assert code == 1
    assert err == "error: lora.r=0: the rank must be at least 1; to train without an adapter use lora=none\n"
    assert list(tmp_path.iterdir()) == []
    code, out, err = arcft_program("contamination", "arcagi:evaluation", "arcagi:nothing", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "nothing" in err
