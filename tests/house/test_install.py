"""`pip install .` gives a package that works away from the checkout: console scripts, configs and the model."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("arcft-*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of console scripts in an environment that has the wheel, and our dependencies without our package."""
    folder = tmp_path_factory.mktemp("environment")
    builder = venv.EnvBuilder(with_pip=False)
    builder.create(folder)
    context = builder.ensure_directories(folder)
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # Torch and the rest are read where they lie, instead of being installed again. A plain path in a .pth file does
    # not bring in the editable install that may lie there too.
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(places) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        context.env_exe,
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(context.bin_path)


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_configs_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "arcft/" + str(path.relative_to(root))
        for root, folder in ((ROOT, "conf"), (ROOT / "arcft", "assets"), (ROOT / "arcft", "reporting/html/templates"))
        for path in (root / folder).rglob("*")
        if path.is_file() and "local" not in path.relative_to(root).parts
    }
    assert {"arcft/conf/train.yaml", "arcft/conf/evaluate.yaml", "arcft/assets/tiny/tokenizer.json"} <= wanted
    assert {"arcft/reporting/html/templates/page.html.j2", "arcft/reporting/html/templates/style.css"} <= wanted
    assert wanted <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"arcft"}
    assert not [name for name in names if name.startswith("arcft/conf/local/")]


def test_the_package_is_the_installed_one(scripts: Path, tmp_path: Path) -> None:
    code = "import arcft; print(arcft.__file__)"
    done = run([scripts / "python", "-c", code], tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(scripts.parent), done.stderr


def test_train_finds_its_configs_from_anywhere(scripts: Path, tmp_path: Path) -> None:
    done = run([scripts / "arcft-train", "dry_run=true"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluate_shows_its_options_from_anywhere(scripts: Path, tmp_path: Path) -> None:
    done = run([scripts / "arcft-evaluate", "--help"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_errors_keep_their_exit_code(scripts: Path, tmp_path: Path) -> None:
    done = run([scripts / "arcft-train", "lora.r=0"], tmp_path)
    assert done.returncode == 1
    assert "lora.r=0" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_says_what_is_installed(scripts: Path, tmp_path: Path) -> None:
    done = run([scripts / "arcft", "--version"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("arcft ")
    assert {line.split()[1] for line in lines if line.startswith("extra ")} >= {"ray:", "vllm:", "joblib:"}


def test_hints_name_the_program_that_was_started(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("job: train\nconfig: {}\n", encoding="utf-8")
    for program, words, other in (("arcft", ["evaluate"], "arcft train"), ("arcft-evaluate", [], "arcft-train")):
        done = run([scripts / program, *words, f"resume={tmp_path}"], tmp_path)
        assert done.returncode == 1
        assert done.stderr.endswith(f"holds no evaluate run; if it is the other kind, use {other}\n")
