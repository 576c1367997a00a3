"""The house-keeping: the floors hold, every config opens with its command, no private place is named."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import arcft
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))


def tracked_files() -> list[Path]:
    """What git has; skips the test in an unpacked archive, where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_floors_hold() -> None:
    # In a process of its own, as it silences every logger of the one it runs in, and other tests read them.
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_every_room_is_on_a_floor() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (floors,) = [contract for contract in contracts if contract["type"] == "layers"]
    assert floors["exhaustive"] is True
    assert floors["layers"][-1] == "errors"
    rooms = [room.strip() for floor in floors["layers"] for room in floor.split("|")]
    there = {
        path.stem for path in (ROOT / "arcft").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(rooms) == sorted(there - {"__init__"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_a_config_opens_with_its_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    # Hydra wants its package directive before anything else.
    opening = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert re.match(r"# (python (train|evaluate)\.py|arcft \w+)\b", opening), opening
    group, name = path.relative_to(ROOT / "conf").parent.name, path.stem
    if group and (group, name) not in (("speed", "speed"), ("training", "default")):
        assert f"{group}={name}" in opening


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", arcft.__version__)
    assert f"\n## {arcft.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_runs_what_developers_run() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow
    steps = [
        line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if line.startswith("step ")
    ]
    assert steps[1:] == [
        "step ruff check .",
        "step ruff format --check .",
        "step mypy",
        "step lint-imports",
        "step pytest -rs -n auto --dist loadfile",
        "step pytest -rs -m slow -n auto --dist worksteal",
    ]


def test_no_code_is_evaluated_or_unpickled() -> None:
    picklers = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    refused = []
    for path in sorted((ROOT / "arcft").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                    refused.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
                case ast.Import(names=aliases):
                    found = picklers & {alias.name.partition(".")[0] for alias in aliases}
                    refused += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in found]
                case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in picklers:
                    refused.append(f"{path.relative_to(ROOT)}:{node.lineno}: {module}")
    assert refused == []


def test_weights_are_read_as_data() -> None:
    """Every torch.load says weights_only=True itself, whatever torch's default may become."""
    careless = []
    for path in sorted((ROOT / "arcft").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"):
                continue
            if "weights_only=True" not in [ast.unparse(keyword) for keyword in node.keywords]:
                careless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert careless == []


# A host in a private network, a folder of somebody's home, or a key.
PRIVATE = re.compile(
    r"https?://(?:10|127|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.[\d.]+"
    r"|\b[\w-]+\.(?:internal|corp|intranet|lan)\b"
    r"|/(?:home|Users)/(?!runner\b|user\b|me\b)[a-z][\w-]+/"
    r"|\bhf_[A-Za-z0-9]{30,}\b"
    r"|--(?:extra-)?index-url|PIP_(?:EXTRA_)?INDEX_URL|--registry\b"
)


def test_no_file_names_a_private_place() -> None:
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in PRIVATE.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "https://10.0.0.7/simple",
        "see build.corp for more",
        "/home/jane/models",
        "pip install --extra-index-url x",
    ],
)
def test_private_places_are_recognised(text: str) -> None:
    assert PRIVATE.search(text)
