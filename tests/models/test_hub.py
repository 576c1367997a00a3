"""Models of a hub: fetched from one, taken from the cache when it is gone, and missed at once. Here the hub is a small
server of this process that answers as the real one does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models.fingerprint import base_fingerprint
from arcft.models.load import load_model
from tests.support.small_training import CPU, small_model, small_tokenizer

LOAD = """
import sys, time, torch
from arcft.config.model import ModelConfig
from arcft.errors import ArcftError
from arcft.models.fingerprint import base_fingerprint
from arcft.models.load import load_model, load_tokenizer
for name in sys.argv[1:]:
    config, begun = ModelConfig(name="m", path=name), time.monotonic()
    try:
        assert load_tokenizer(config).convert_tokens_to_ids(["<pad>", "<end>", "w7"]) == [0, 1, 7]
        model = load_model(config, dtype=torch.float32, device=torch.device("cpu"))
        print(base_fingerprint(config, model))
    except ArcftError as error:
        print(error)
    assert time.monotonic() - begun < 5, "waited for the hub"
"""


class Hub(BaseHTTPRequestHandler):
    """`/OWNER/NAME/resolve/main/FILE` and `/api/models/OWNER/NAME`, for the one model it has."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        model, _, file = self.path.partition("/resolve/main/")
        content = b""
        if model == "/api/models/owner/small":
            content = b'{"id": "owner/small"}'
        elif model == "/owner/small" and (self.folder / file).is_file():
            content = (self.folder / file).read_bytes()
        self.send_response(200 if content else 404)
        if not content:
            self.send_header("X-Error-Code", "EntryNotFound" if "/owner/small" in model else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    small_model(seed=3).save_pretrained(tmp_path / "served")
    small_tokenizer().save_pretrained(tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneModel", (Hub,), {"folder": tmp_path / "served"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def loaded(endpoint: str, home: Path, *names: str) -> list[str]:
    """What a process says that loads `names` from the hub at `endpoint`."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "localhost", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *names],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "thrown while requesting" not in ended.stderr
    assert "Retrying" not in ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_a_model_is_fetched_and_then_there_without_a_network(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://localhost:{hub.server_port}"
    fetched = loaded(endpoint, tmp_path / "home", "owner/small", "owner/other")
    served = ModelConfig(name="m", path=str(tmp_path / "served"))
    assert fetched[0] == base_fingerprint(served, load_model(served, dtype=torch.float32, device=CPU))
    assert fetched[1].startswith("model.path=owner/other is not a local folder, and as a hub id a tokenizer can't be")
    hub.shutdown()
    hub.server_close()
    again = loaded(endpoint, tmp_path / "home", "owner/small", "owner/other")
    assert again[0] == fetched[0]
    assert again[1].startswith("model.path=owner/other is not a local folder, and as a hub id a tokenizer can't be")
    assert "check the name and the network" in again[1]


def test_without_a_hub_the_message_comes_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    (message,) = loaded("http://localhost:9", tmp_path, "owner/small")
    assert message.startswith("model.path=owner/small is not a local folder, and as a hub id a tokenizer can't be")
    assert time.monotonic() - begun < 30
