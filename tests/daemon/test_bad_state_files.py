"""One file below state/ that cannot be used costs what it held, never the daemon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, plant, wait_for

NAMES = [
    "undo/log.json",
    "approvals.json",
    "history.db",
    "queue/known_files",
    "queue/next_id",
    "config.last_good.toml",
    "ledger.json",
    "restore.json",
]


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def odd_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\n\xff")


WAYS: list[Callable[[Path], None]] = [a_folder, a_loop, odd_bytes]


def spoil(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


def trains(daemon: Harness) -> None:
    """A file that is there and one that comes are trained."""
    daemon.until_job("a.jsonl", "completed")
    (daemon.workspace.inbox / "b.jsonl").write_bytes(chat_rows(3, "b"))
    daemon.until_job("b.jsonl", "completed")


@pytest.mark.parametrize("make", WAYS)
def test_files_that_cannot_be_used_are_told_and_all_else_goes_on(serve, make) -> None:
    daemon = serve()
    first = plant(daemon.workspace, "a.jsonl")
    for name in NAMES:
        spoil(daemon.workspace.state / name, make)
    daemon.start()
    trains(daemon)
    assert daemon.job("b.jsonl")["id"] > first.id
    for name in NAMES:
        is_told(daemon, name, make)
    assert daemon.stop() == 0


def is_told(daemon: Harness, name: str, make: Callable[[Path], None]) -> None:
    path = daemon.workspace.state / name
    if name not in ("queue/known_files", "config.last_good.toml") or make is a_folder:
        kept = list(path.parent.glob(f"{path.name}.broken-*"))
        assert kept, "what had the name is kept"
    if name != "config.last_good.toml" and (name, make) != ("queue/known_files", odd_bytes):
        assert daemon.said(path.name), "people are told"


@pytest.mark.parametrize("make", WAYS)
def test_an_intent_that_cannot_be_read_stops_training_until_a_person_says(serve, make) -> None:
    daemon = serve()
    plant(daemon.workspace, "a.jsonl")
    spoil(daemon.workspace.intent_file, make)
    for _ in range(2):
        training = daemon.start().until_training("stopped")
        assert "intent.json" in training["reason"], training
        assert daemon.said("training stays stopped: intent.json")
        assert daemon.job("a.jsonl")["state"] == "waiting"
        daemon.stop()
    daemon.start().post("/v1/training/resume")
    trains(daemon)


SHUT_SETTINGS = """
import errno, pathlib
plain = pathlib.Path.read_bytes
def read_bytes(path):
    if path.name == "config.toml" and path.with_name("shut").exists():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return plain(path)
pathlib.Path.read_bytes = read_bytes
"""


def test_settings_that_cannot_be_read_leave_the_last_good_ones_in_force(serve) -> None:
    daemon = serve(settings="save_steps = 77\n")
    daemon.prelude = SHUT_SETTINGS
    (daemon.workspace.root / "shut").touch()
    assert daemon.launch().wait(20) == 2, "there never was a good one"
    assert "config.toml cannot be read: Permission denied" in daemon.output()
    assert "Traceback" not in daemon.output()
    (daemon.workspace.root / "shut").unlink()
    daemon.start().stop()
    (daemon.workspace.root / "shut").touch()
    found = daemon.start().get("/v1/config")
    assert found["values"]["save_steps"] == 77
    assert "config.toml cannot be read" in found["problem"]


def test_a_lost_number_is_found_anew_above_every_job_there_ever_was(serve) -> None:
    daemon = serve()
    plant(daemon.workspace, "a.jsonl")
    removed = plant(daemon.workspace, "b.jsonl")
    daemon.start().until_job("b.jsonl", "completed")
    daemon.call("DELETE", f"/v1/jobs/{removed.id}")
    daemon.stop()
    queue = daemon.workspace.queue
    spoil(queue / "next_id", odd_bytes)
    spoil(queue / "known_files", a_folder)
    for folder in queue.glob("recently_completed/*"):
        shutil.rmtree(folder)
    assert plant(daemon.workspace, "c.jsonl").id == removed.id + 1
    for folder in daemon.workspace.trash.glob("job.*"):
        shutil.rmtree(folder)
    shutil.rmtree(next(queue.glob("normal/*")))
    spoil(queue / "next_id", odd_bytes)
    shutil.rmtree(queue / "known_files", ignore_errors=True)
    (queue / "known_files").unlink(missing_ok=True)
    assert plant(daemon.workspace, "d.jsonl").id == removed.id + 1, "the ledger knows it too"


def test_a_queue_folder_that_cannot_be_read_is_told_and_its_jobs_come_back(serve) -> None:
    daemon = serve()
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "hidden.jsonl", priority="low")
    shut = daemon.workspace.root / "shut"
    shut.touch()
    daemon.prelude = f"""
import errno, os
from trainer_tui.daemon import upkeep
upkeep.RECONCILE_EVERY_S = 0.2
plain = os.scandir
def scandir(path):
    if str(path).endswith("/queue/low") and os.path.exists({str(shut)!r}):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return plain(path)
os.scandir = scandir
"""
    daemon.start()
    trains(daemon)
    assert len(daemon.said("state/queue/low cannot be read")) == 1
    shut.unlink()
    daemon.until_job("hidden.jsonl", "completed")
    held = plant_later(daemon, shut)
    assert daemon.job("later.jsonl")["id"] == held
    assert not daemon.said("was deleted by hand")


def plant_later(daemon: Harness, shut: Path) -> int:
    """A low job that waits while its folder cannot be read. Returns its number."""
    daemon.post("/v1/training/pause")
    path = daemon.workspace.root / "later.jsonl"
    path.write_bytes(chat_rows(3, "later"))
    job_id: int = daemon.post("/v1/jobs", {"path": str(path), "priority": "low"})["id"]
    shut.touch()
    wait_for(lambda: len(daemon.said("state/queue/low cannot be read")) == 2)
    return job_id


def test_what_was_approved_is_lost_with_its_file_but_said(serve) -> None:
    daemon = serve(settings="max_length = 512\n")
    daemon.start().stop()
    spoil(daemon.workspace.state / "approvals.json", a_folder)
    assert daemon.start().said("what config.toml says is approved")
    kept = json.loads((daemon.workspace.state / "approvals.json").read_bytes())
    assert kept["values"]["max_length"] == 512
