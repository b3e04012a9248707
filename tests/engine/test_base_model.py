"""A base model that is fetched: only safe files, whole or not at all. The hub is a local one."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

SCRIPT = """
import sys
from pathlib import Path
from trainer_tui.engine.base_model import ensure_base_model
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import TrainerTuiError
try:
    config = Config(model_name="owner/model", base_model="models/base")
    print(ensure_base_model(config, Path(sys.argv[1]), lambda moved: None))
except TrainerTuiError as problem:
    print(problem)
    sys.exit(1)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as `snapshot_download` asks for."""

    files: ClassVar[dict[str, bytes]] = {}
    broken: ClassVar[str] = ""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            told = {"id": "owner/model", "sha": "a" * 40, "siblings": siblings, "tags": []}
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "b" * 40}
                    for n, d in self.files.items()]  # fmt: skip
            self._send(json.dumps(tree if "/tree/" in path else told).encode(), body)
            return
        name = path.rsplit("/", 1)[-1]
        self.asked.append(name)
        if name == self.broken or name not in self.files:
            self.send_error(404)
            return
        self._send(self.files[name], body)

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(data):040d}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *unused: object) -> None:
        pass


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[str]:
    Hub.files = {p.name: p.read_bytes() for p in tiny_model.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"pickle", "modeling_own.py": b"print('no')"}
    Hub.broken, Hub.asked = "", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(root: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(root / "hf")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_hub_model_is_fetched_once_without_code_or_pickles(tmp_path: Path, hub: str) -> None:
    done = fetch(tmp_path, hub)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "models" / "base"
    names = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_own.py", ".cache"}
    assert not set(Hub.asked) & {"pytorch_model.bin", "modeling_own.py"}
    Hub.asked.clear()
    assert fetch(tmp_path, hub).returncode == 0
    assert Hub.asked == []


def test_a_download_that_breaks_leaves_nothing_half_done(tmp_path: Path, hub: str) -> None:
    Hub.broken = "model.safetensors"
    done = fetch(tmp_path, hub)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert not (tmp_path / "models" / "base").exists()
    assert list((tmp_path / "models").iterdir()) == []
