"""What is ours alone: modes of files, secrets that reach no log, folders that belong to others."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from daemon_harness import plant, wait_for

TOKEN, HOOK = "tok-3n-s3cret", "hook-pa7h-s3cret"
SETTINGS = (
    f'[api]\nlisten = "127.0.0.1:1"\ntoken = "{TOKEN}"\n'
    f'[notify]\nwebhook = "http://127.0.0.1:9/{HOOK}"\nmin_interval_s = 0.001\n'
    "[supervision]\nbackoff_s = [0.05]\n"
)
COPIES_OF_THE_SETTINGS = {"config.toml", "config.last_good.toml"}


@pytest.fixture
def lived(serve):
    """A workspace whose daemon has trained, crashed, told a dead webhook and refused an edit."""
    daemon = serve(settings=SETTINGS, steps=100_000, save_every=20)
    before = os.umask(0o077)  # the job that is planted here is this process's work
    try:
        plant(daemon.workspace, "a.jsonl")
    finally:
        os.umask(before)
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 30, 60)
    os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
    wait_for(lambda: daemon.training()["restarts"] == 1, 60)
    bad = daemon.call("PATCH", "/v1/config", {"values": {"learning_rate": 7}})
    assert bad.status == 422
    wait_for(lambda: log_of(daemon).count("notify.webhook 127.0.0.1"), 60, "the hook was tried")
    return daemon


def log_of(daemon) -> str:
    return (daemon.workspace.logs / "daemon.log").read_text()


def test_state_is_readable_by_nobody_else(lived):
    lived.stop()
    found = [lived.workspace.state, *lived.workspace.state.rglob("*")]
    assert len(found) > 20
    loose = {
        str(path): oct(path.lstat().st_mode)
        for path in found
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    }
    assert loose == {}


def test_secrets_reach_no_log_no_incident_and_no_answer(lived):
    answers = [
        lived.call("GET", f"/v1/{name}").body
        for name in ("config", "status", "incidents", "history?limit=1000", "openapi.json")
    ]
    assert b"127.0.0.1/\xe2\x80\xa6" in answers[0] or b"127.0.0.1/\\u2026" in answers[0]
    lived.stop()
    places = [lived.workspace.root / "daemon.out", *lived.workspace.root.rglob("*")]
    holding = [
        str(path)
        for path in places
        if path.is_file()
        and path.name not in COPIES_OF_THE_SETTINGS
        and any(secret.encode() in path.read_bytes() for secret in (TOKEN, HOOK))
    ]
    assert holding == []
    assert not any(secret.encode() in body for secret in (TOKEN, HOOK) for body in answers)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_or_a_socket_of_another_user_is_not_served(serve):
    daemon = serve()
    daemon.workspace.prepare()
    os.chown(daemon.workspace.state, 12345, 12345)
    assert daemon.launch().wait(60) == 2
    assert "not a directory of ours" in daemon.output()
    os.chown(daemon.workspace.state, 0, 0)
    daemon.workspace.socket.write_text("a file in the socket's place")
    assert daemon.launch().wait(60) != 0
    assert daemon.workspace.socket.read_text() == "a file in the socket's place"
    daemon.workspace.socket.unlink()


def test_the_token_is_compared_in_constant_time() -> None:
    source = Path(__file__).parents[2] / "daemon" / "http_server.py"
    assert "hmac.compare_digest(" in source.read_text()
