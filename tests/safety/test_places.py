"""The workspace is found and is ours alone; its socket works however long the path; its heartbeat
is readable at any moment."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from trainer_tui.safety import heartbeat, unix_socket, workspace
from trainer_tui.safety.errors import WorkspaceProblem
from trainer_tui.safety.heartbeat import HeartbeatWriter, Phase
from trainer_tui.safety.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "config.toml").write_text("")
    return Workspace(tmp_path / "ws")


def test_the_nearest_workspace_upwards_is_the_one_in_use(ws, monkeypatch):
    monkeypatch.delenv(workspace.ENVIRONMENT_KEY, raising=False)
    deep = ws.root / "a" / "b"
    deep.mkdir(parents=True)
    assert workspace.find(start=deep) == ws
    (deep / "config.toml").write_text("")
    assert workspace.find(start=deep) == Workspace(deep)


def test_a_named_workspace_wins_over_the_environment_and_that_over_the_place(ws, monkeypatch):
    other = ws.root / "other"
    other.mkdir()
    (other / "config.toml").write_text("")
    monkeypatch.setenv(workspace.ENVIRONMENT_KEY, str(other))
    assert workspace.find(start=ws.root) == Workspace(other)
    assert workspace.find(ws.root, start=other) == ws


def test_no_workspace_is_a_sentence_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv(workspace.ENVIRONMENT_KEY, raising=False)
    with pytest.raises(WorkspaceProblem) as problem:
        workspace.find(tmp_path)
    assert "trainer-tui init" in problem.value.hint


def test_state_is_made_for_us_alone(ws):
    ws.prepare()
    assert stat.S_IMODE(ws.state.stat().st_mode) == 0o700
    ws.state.chmod(0o755)
    ws.prepare()
    assert stat.S_IMODE(ws.state.stat().st_mode) == 0o700
    assert all(folder.is_dir() for folder in (ws.inbox, ws.ledger, ws.trash, ws.queue / "high"))


def test_a_state_that_is_a_link_is_refused(ws, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    ws.state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceProblem, match="not a directory of ours"):
        ws.prepare()


def test_a_folder_that_cannot_be_made_is_a_sentence(ws):
    ws.models.write_text("a file where a folder belongs")
    with pytest.raises(WorkspaceProblem, match="models"):
        ws.prepare()


def test_a_socket_below_a_very_long_path_is_private_and_answers(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    path = folder / "api.sock"
    assert len(str(path)) > 107
    server = unix_socket.listen(path)
    server.setblocking(True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = unix_socket.connect(path, 5)
    accepted, _ = server.accept()
    client.sendall(b"hello")
    assert accepted.recv(5) == b"hello"
    for end in (client, accepted, server):
        end.close()


def test_a_left_over_socket_is_replaced_and_anything_else_is_not(tmp_path):
    path = tmp_path / "api.sock"
    unix_socket.listen(path).close()
    unix_socket.listen(path).close()
    path.unlink()
    path.write_text("somebody's file")
    with pytest.raises(OSError, match="is not a socket"):
        unix_socket.listen(path)
    assert path.read_text() == "somebody's file"


def test_nobody_listening_is_an_error_and_leaks_nothing(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(OSError):
            unix_socket.connect(tmp_path / "api.sock", 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_beat_is_read_as_it_was_written(tmp_path):
    page = tmp_path / "heartbeat"
    assert heartbeat.read(page) is None
    writer = HeartbeatWriter(page)
    assert heartbeat.read(page) is None  # nothing was said yet
    writer.beat(Phase.MICRO_STEP, global_step=7, micro_step=3, bytes_written=1 << 40)
    beat = heartbeat.read(page)
    assert (beat.phase, beat.global_step, beat.micro_step) == (Phase.MICRO_STEP, 7, 3)
    assert beat.pid == os.getpid() and beat.bytes_written == 1 << 40
    assert beat.phase.label == "micro-step"


def test_a_reader_never_sees_a_mixture_of_two_beats(tmp_path):
    page = tmp_path / "heartbeat"
    writer = HeartbeatWriter(page)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            writer.beat(global_step=number, micro_step=number, bytes_written=number)

    thread = threading.Thread(target=write)
    thread.start()
    seen = [beat for _ in range(3000) if (beat := heartbeat.read(page))]
    stop.set()
    thread.join()
    assert seen
    assert all(beat.global_step == beat.micro_step == beat.bytes_written for beat in seen)
    steps = [beat.global_step for beat in seen]
    assert steps == sorted(steps)
