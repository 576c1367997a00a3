"""`arcft speed` as a user types it: measured, stopped, resumed, refused, and what can't be measured."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from arcft.checkpoints import read_run_yaml, write_run_yaml
from arcft.cli.speed import model_configs
from arcft.config.schema import to_dict
from arcft.config.speed import SpeedConfig
from arcft.runs.speed_study.results import Results
from arcft.runs.speed_study.worker import machine
from tests.cli.test_program import called
from tests.support.paths import ROOT
from tests.support.speed_rows import measured, setting

TINY = ROOT / "arcft" / "assets" / "tiny"
SMALL = ["model=tiny", "batch=[1,2]", "input=16", "output=[2,6]", "repeats=2"]


def start(*words: str, cwd: Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "arcft", "speed", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def speed(*words: str, cwd: Path, limit: Callable[[], None] | None = None) -> str:
    """The command's output; it must succeed."""
    out, err = (process := start(*words, cwd=cwd, limit=limit)).communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def stored(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "speed.json").read_text(encoding="utf-8"))["settings"]


def study_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs" / "speed").iterdir()
    return folder


def outcomes(folder: Path) -> dict[tuple[int, int, int], str]:
    return {
        tuple(row["setting"][axis] for axis in ("batch", "input", "output")): row["outcome"] for row in stored(folder)
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tinny"], "model=tinny: is neither an option of conf/model nor a folder, a .gguf file or a hub id"),
        (["model=/no/such.gguf"], "model=/no/such.gguf: there is no such file or folder"),
        (
            ["model=smollm2_135m", "paths={smollm2_135m: /no/such.gguf}"],
            "model=smollm2_135m: /no/such.gguf: there is no such file or folder",
        ),
        (["model=tiny", "output=70000"], "input=1024 with output=70000 is 71024 tokens, and model=tiny takes at most"),
        (["model=smollm2_135m"], "model=smollm2_135m: the hub id HuggingFaceTB/SmolLM2-135M-Instruct can't be reached"),
        (["model=[tiny,x/y]", "paths={x/y: z}"], "paths.x/y: x/y isn't an option of conf/model; put the path"),
        (["model=tiny", "dtype=[auto,float32]"], "dtype: on this machine auto and float32 are the same; drop one of"),
        ([f"model=[{TINY},{TINY.parent}/../assets/tiny]"], f"model: {TINY} is named twice; each value is measured"),
        (["model=tiny", "encoder=shape"], "encoder: there is no such key; known are model, dtype, quantization"),
        (["resume=nothing"], "nothing: there is no such folder; give the folder of a run, e.g. outputs/speed/..."),
        (["resume=nothing", "batch=3"], "batch=3 has no effect with resume=, which keeps its config; drop it"),
    ],
)
def test_what_is_refused_leaves_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "speed", *words) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("job: train\nconfig: {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "speed", f"resume={tmp_path}") == 1
    message = f"error: resume={tmp_path}: holds no speed run; if it is the other kind, use arcft train\n"
    assert capsys.readouterr().err == message


def test_a_dry_run_lists_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "speed", *SMALL, "dry_run=true") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model tiny, dtype auto, quantization none, batch 1, input 16, output 2"
    assert lines[-1] == "dry run: 4 settings; nothing was measured or written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", [(str(TINY), "tiny"), ("tiny", str(TINY))])
def test_a_folder_may_be_named_like_an_option(
    order: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"model=[{','.join(order)}]", "batch=1", "input=16", "output=2", "dry_run=true"]
    assert called(monkeypatch, "speed", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", dtype")[0] for line in lines[:-1]] == [f"model {name}" for name in order]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A study of one setting with its figures, as an earlier version without `prune_vocabulary` has left it."""
    config = SpeedConfig(model="tiny", dtype="auto", quantization="none", batch=1, input=100, output=11)
    (model,) = (one.model for one in model_configs(config).values())
    stored = to_dict(model) | {"recommended": {"a key of then": 1}}
    del stored["prune_vocabulary"]
    write_run_yaml(tmp_path, {"arcft": "0.9", "job": "speed", "config": to_dict(config), "models": {"tiny": stored}})
    results = Results(tmp_path, config, None)
    results.check_machine(machine())
    results.record(measured(setting("tiny"), (1.0, 2.0)))
    return tmp_path


def test_a_study_of_an_earlier_version_is_resumed(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "speed", f"resume={finished}", "budget=1h", "samples=100") == 0
    assert "1 h for 100 samples is 36 s per sample; with loading, 1 of 1 measured setting fits" in (
        capsys.readouterr().out
    )


def test_a_study_of_another_model_of_that_name_is_not(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {key: value for key, value in read_run_yaml(finished).items() if key != "arcft"}
    run["models"]["tiny"]["init"] = "random"
    write_run_yaml(finished, {"arcft": "0.9"} | run)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "speed", f"resume={finished}") == 1
    assert "the options of tiny (conf/model) were changed since it was measured" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_and_its_budget(tmp_path: Path) -> None:
    out = speed(*SMALL, "quantization=[none,nf4]", "budget=1h", "samples=100", cwd=tmp_path)
    folder = study_folder(tmp_path)
    rows = stored(folder)
    assert [row["outcome"] for row in rows] == ["measured"] * 8
    assert [row["setting"]["quantization"] for row in rows] == ["none"] * 4 + ["nf4"] * 4
    for row in rows:
        assert len(row["runs"]) == 2
        assert 1_600_000 < row["loaded"]["parameters"] < 1_800_000
        assert row["loaded"]["dtype"] in ("float32", "bfloat16")
        assert 0 < row["figures"]["first_token_seconds"] < row["figures"]["seconds"]
        assert 10**8 < row["peak_bytes"] < 10**10
    everything = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    assert everything["machine"]["threads"] == 1
    assert everything["machine"]["cpu"]
    assert everything["budget"]["seconds_per_sample"] == 36
    assert all(0 < share < 1 for share in everything["budget"]["shares"])
    lines = list(csv.DictReader((folder / "speed.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["longest_output"] for line in lines] == ["6"] * 8
    assert Image.open(folder / "speed.png").size == (1400, 860)
    assert "1 h for 100 samples is 36 s per sample; with loading, 8 of 8 measured settings fit; the largest" in out
    assert "  tiny, input 16: 6 tokens or more, the longest measured (" in out

    # Another budget is answered from what is there.
    out = speed(f"resume={folder}", "budget=1s", "samples=100", cwd=tmp_path)
    assert "1.0 s for 100 samples is 0.01 s per sample; with loading, 0 of 8 measured settings fit." in out
    assert "  tiny, input 16: not even the first token" in out
    assert stored(folder) == rows


@pytest.mark.slow
def test_a_stopped_study_is_resumed(tmp_path: Path) -> None:
    process = start("model=tiny", "batch=1", "input=[16,64]", "output=[2,4000]", "repeats=1", cwd=tmp_path)
    while not list(tmp_path.glob("outputs/speed/*/speed.json")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    folder = study_folder(tmp_path)
    assert process.returncode == 128 + signal.SIGINT
    assert err.splitlines()[-1] == f"stopped; resume with: python -m arcft speed resume={folder}"
    before = stored(folder)
    assert 1 <= len(before) < 4
    assert not (folder / "speed.png").exists()
    speed(f"resume={folder}", cwd=tmp_path)
    assert [row["outcome"] for row in stored(folder)] == ["measured"] * 4
    assert [row for row in stored(folder) if row in before] == before
    assert (folder / "speed.png").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_row(tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    process = start("model=tiny", "batch=[1,2]", "input=16", "output=[2,20000]", "repeats=1", cwd=tmp_path)
    while not list(tmp_path.glob("outputs/speed/*/speed.json")) and process.poll() is None:
        time.sleep(0.05)
    while len(stored(study_folder(tmp_path))) < 2:
        time.sleep(0.05)
    (child,) = [
        one for one in psutil.Process(process.pid).children() if "resource_tracker" not in " ".join(one.cmdline())
    ]
    child.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert outcomes(study_folder(tmp_path)) == {
        (1, 16, 2): "measured",
        (2, 16, 2): "measured",
        (1, 16, 20000): "out of memory",
        (2, 16, 20000): "left out",
    }
    assert "output 20,000: the process ended: SIGKILL; systems also end processes this way when memory runs out" in out


@pytest.mark.slow
def test_what_takes_too_long_is_a_row(tmp_path: Path) -> None:
    out = speed("model=tiny", "batch=[1,2]", "input=16", "output=[2,60000]", "repeats=1", "max_time=25s", cwd=tmp_path)
    folder = study_folder(tmp_path)
    assert outcomes(folder) == {
        (1, 16, 2): "measured",
        (2, 16, 2): "measured",
        (1, 16, 60000): "too slow",
        (2, 16, 60000): "left out",
    }
    assert "batch 1, input 16, output 60,000: it took more than max_time=25s" in out
    assert "left out: batch 1, input 16, output 60,000 already took too long" in out


@pytest.mark.slow
def test_out_of_memory_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Under `ulimit -v`, keys and values of many rows don't fit; the next model and precision begin anew."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (5 * 2**29, 5 * 2**29))

    words = ["batch=[1,1000]", "input=1024", "output=2", "repeats=1", "dtype=[float32,bfloat16]"]
    out = speed("model=tiny", *words, cwd=tmp_path, limit=limit)
    rows = stored(study_folder(tmp_path))
    assert [row["outcome"] for row in rows] == ["measured", "out of memory"] * 2
    assert "tiny, float32, batch 1000, input 1,024, output 2: out of memory (" in out


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_fails_alone(tmp_path: Path) -> None:
    """Its config is whole, so that only loading finds it out."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((TINY / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    cwd = tmp_path / "work"
    cwd.mkdir()
    out = speed(f"model=[{broken},tiny]", "batch=1", "input=8", "output=2", "repeats=1", cwd=cwd)
    assert [row["outcome"] for row in stored(study_folder(cwd))] == ["failed", "measured"]
    assert "broken, auto, batch 1, input 8, output 2: model.path=" in out
    process = start(f"model={broken}", "batch=1", "input=8", "output=2", cwd=cwd)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: no setting could be measured; " in err


@pytest.mark.slow
def test_a_gguf_file_in_four_bits(smollm2_gguf: Path, tmp_path: Path) -> None:
    out = speed(
        "model=smollm2_135m", f"paths={{smollm2_135m: {smollm2_gguf}}}", "quantization=nf4", "batch=1", "input=32",
        "output=4", "repeats=1", cwd=tmp_path,
    )  # fmt: skip
    (row,) = stored(study_folder(tmp_path))
    assert row["outcome"] == "measured"
    assert 134_000_000 < row["loaded"]["parameters"] < 136_000_000
    assert "smollm2_135m, float32, nf4: 135M parameters" in out or "smollm2_135m, bfloat16, nf4: 135M" in out
