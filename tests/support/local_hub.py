"""A hub on this machine that speaks what an upload needs: who we are, repositories, and commits with large files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_local"


class LocalHub:
    """What was uploaded, and who may upload."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.refuses_commits = False


@contextlib.contextmanager
def local_hub() -> Iterator[tuple[LocalHub, str]]:
    """A hub, and its address."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("localhost", 0), lambda *arguments: _Handler(hub, *arguments))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: LocalHub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(200, {})

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Invalid username or password."})
            else:
                self._answer(
                    200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
                )
        else:
            self._answer(200, {"id": "me/it", "sha": "0" * 40, "siblings": [], "private": True})

    def do_PUT(self) -> None:
        content = self._body()
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        address = f"http://{self.headers['host']}"
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            self.hub.repositories[f"me/{wanted['name']}"] = wanted
            self._answer(200, {"url": f"{address}/me/{wanted['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = [(entry["oid"], entry["size"]) for entry in json.loads(body)["objects"]]
            objects = [
                {"oid": oid, "size": size, "actions": {"upload": {"href": f"{address}/objects/{oid}", "header": {}}}}
                for oid, size in wanted
            ]
            self._answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        elif "/commit/" in self.path:
            if self.hub.refuses_commits:
                self._answer(403, {"error": "You are not allowed to write here."})
                return
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    self.hub.files[entry["value"]["path"]] = self.hub.objects[entry["value"]["oid"]]
            commit = {"commitOid": "1" * 40, "commitUrl": f"{address}/me/it/commit/1", "pullRequestUrl": None}
            self._answer(200, commit)
        else:
            self._answer(404, {"error": self.path})

    def _body(self) -> bytes:
        length = self.headers.get("content-length")
        if length is not None:
            return self.rfile.read(int(length))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status: int, content: dict[str, Any], kind: str = "application/json") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
