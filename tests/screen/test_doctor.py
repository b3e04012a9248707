"""What the doctor says of disks and of a daemon that gives no answer."""

from __future__ import annotations

import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_tui.safety.config import Disk
from trainer_tui.safety.filesystems import Measured
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui import client, columns, doctor
from trainer_tui.tui.context import Context

GB = 10**9


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [(80, "ok", ""), (6, "ok", ""), (4, "fail", "training waits")],
)
def test_each_disk_of_a_workspace_is_looked_at_and_named(free, level, words) -> None:
    space = Workspace(Path("/workspace"))

    def measuring(path: Path) -> Measured:
        of_models = path.is_relative_to(space.models)
        return Measured(2, free * GB, 100 * GB) if of_models else Measured(1, 90 * GB, 100 * GB)

    root, models = doctor.disk_findings(space, Disk(), measuring)
    assert (root.level, root.text) == ("ok", "90GB of 100GB free")
    assert models.level == level
    assert models.text == f"models: {columns.size(free * GB)} of 100GB free"
    assert words in models.hint


def test_a_short_disk_that_nothing_waits_for_is_a_note() -> None:
    space = Workspace(Path("/workspace"))

    def measuring(path: Path) -> Measured:
        return Measured(2, 1, 100 * GB) if path == space.versions else Measured(1, GB * 9, GB * 10)

    _, versions = doctor.disk_findings(space, Disk(), measuring)
    assert versions.level == "note" and versions.text.startswith("models/backups/consolidated: ")


class Asked:
    """A context whose daemon, if any, listens in a folder of the test."""

    def __init__(self, path: Path) -> None:
        self.client = client.Client(path, "test")


def daemon_finding(path: Path) -> doctor.Finding:
    context: Context = Asked(path)  # type: ignore[assignment]
    [found] = doctor._daemon(context)
    return found


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "api.sock"))
        server.listen(8)
        yield server


def test_no_daemon_is_told_as_none(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    assert daemon_finding(path).text == "none runs here"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))  # the socket of one that was killed: nobody listens
    found = daemon_finding(path)
    assert (found.level, found.text) == ("note", "none runs here")


def test_a_silent_daemon_is_told_as_silent(listening, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    found = daemon_finding(tmp_path / "api.sock")
    assert (found.level, found.text) == ("fail", "the daemon did not answer within 0.2 s")


def test_a_daemon_that_hangs_up_is_there(listening: socket.socket, tmp_path: Path) -> None:
    hanging_up = threading.Thread(target=lambda: listening.accept()[0].close())
    hanging_up.start()
    found = daemon_finding(tmp_path / "api.sock")
    hanging_up.join(10)
    assert found.level == "fail" and "no answer from the daemon" in found.text


def test_a_daemon_that_refuses_is_told_with_its_words(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"detail": "the queue cannot be read", "hint": "look at the disk"}'
            self.send_response(500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

        def address_string(self) -> str:
            return "test"

    path = tmp_path / "api.sock"
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        found = daemon_finding(path)
        answering.join(10)
    assert (found.level, found.hint) == ("fail", "look at the disk")
    assert found.text.endswith("the queue cannot be read")
