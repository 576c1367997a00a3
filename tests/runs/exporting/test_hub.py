"""Uploads to a hub on this machine, by huggingface_hub itself in a process of its own, which reads the address once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local_hub import TOKEN, local_hub
from tests.support.paths import ROOT

PROGRAM = """
import sys
from pathlib import Path
from arcft.errors import ArcftError
from arcft.runs.exporting.hub import check_hub, upload
try:
    check_hub(sys.argv[3])
    print("uploaded to", upload(Path(sys.argv[1]), sys.argv[3], private=sys.argv[2] == "private"))
except ArcftError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "base").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "base" / "config.json").write_text("{}")
    return folder


def upload(
    folder: Path, address: str, token: str = TOKEN, visibility: str = "private", repository: str = "me/it"
) -> tuple[int, str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        # Large files go by git LFS, for which plain HTTP does.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder.parent / "hub"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, str(folder), visibility, repository]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("visibility", ["private", "public"])
def test_everything_is_uploaded(folder: Path, visibility: str) -> None:
    with local_hub() as (hub, address):
        code, said = upload(folder, address, visibility=visibility)
    assert code == 0, said
    assert f"uploaded to {address}/me/it" in said
    # Earlier releases of huggingface_hub ask in the first way.
    wanted = hub.repositories["me/it"]
    assert wanted.get("visibility", "private" if wanted.get("private") else "public") == visibility
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert hub.files == {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_who_may_not_write_is_told(folder: Path) -> None:
    with local_hub() as (hub, address):
        code, said = upload(folder, address, "hf_wrong")
        assert code == 1
        assert f"push_to_hub=me/it: can't write to {address}" in said
        assert "log in with `hf auth login` or set HF_TOKEN" in said
        assert not hub.repositories
        code, said = upload(folder, address, repository="other/it")
        assert code == 1
        assert "push_to_hub=other/it: the login" in said
        assert "can write to me; use one of these as the owner" in said
        assert not hub.repositories
        hub.refuses_commits = True
        code, said = upload(folder, address)
        assert code == 1
        assert f"The export in {folder} is complete; try again with: hf upload me/it {folder}" in said
        assert not hub.files
