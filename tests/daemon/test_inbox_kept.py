"""Originals that cannot be removed from the inbox: each is one job, said once."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, wait_for

# inbox/high lets nobody remove its files while the mark is there.
HELD_FAST = """
import os
from pathlib import Path
from trainer_tui.daemon import inbox
from trainer_tui.safety import durable
inbox.FAILED_AGAIN_S = 0.5
real, mark = durable.rename, Path({mark!r})
def rename(source, target):
    if source.parent.name == "high" and mark.exists():
        raise OSError({number}, os.strerror({number}), str(source))
    return real(source, target)
durable.rename = rename
"""
# A mount namespace of its own, in which the inbox cannot be written.
READ_ONLY = """
import ctypes
libc = ctypes.CDLL(None)
def mount(source, target, flags):
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        raise SystemExit(77)
if libc.unshare(0x20000):
    raise SystemExit(77)
mount("none", "/", 0x44000)  # MS_REC | MS_PRIVATE
mount({inbox!r}, {inbox!r}, 0x1000)  # MS_BIND
mount({inbox!r}, {inbox!r}, 0x1021)  # MS_BIND | MS_REMOUNT | MS_RDONLY
"""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    made = Harness(make_workspace(tmp_path / "ws", "poll_interval = 0.3\n"))
    made.workspace.prepare()
    yield made
    made.close()


def looked_at(harness: Harness, name: str) -> None:
    """The inbox was looked at often enough to take anything that was ready before this."""
    (harness.workspace.inbox / name).write_bytes(chat_rows(1, name))
    harness.until_job(name, "waiting")


def jobs_of(harness: Harness, name: str) -> list[str]:
    return [job["state"] for job in harness.jobs() if job["name"] == name]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_file_in_a_folder_that_keeps_it_is_one_failed_job_until_it_changes(
    harness: Harness, tmp_path: Path, number: int
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    harness.prelude = HELD_FAST.format(mark=str(mark), number=number)
    bad = harness.workspace.inbox / "high" / "bad.jsonl"
    bad.write_bytes(b"no json\n" * 9)
    harness.start()
    harness.post("/v1/training/pause")
    harness.until_job("bad.jsonl", "failed")
    [said] = wait_for(lambda: harness.said("is job 1 now, but cannot be removed"))
    assert "write to" in said["data"]["hint"] and said["data"]["job"] == 1
    looked_at(harness, "one.jsonl")
    looked_at(harness, "two.jsonl")  # seconds: more tries to remove it than one
    assert jobs_of(harness, "bad.jsonl") == ["failed"]
    assert len(harness.said("is job 1 now, but cannot be removed")) == 1
    harness.stop()
    harness.start()
    looked_at(harness, "three.jsonl")
    assert jobs_of(harness, "bad.jsonl") == ["failed"], "a restart forgets nothing"
    wait_for(lambda: harness.said("bad.jsonl cannot be removed, but became jobs earlier"))
    bad.write_bytes(b"still no json\n" * 9)
    wait_for(lambda: jobs_of(harness, "bad.jsonl") == ["failed", "failed"])
    mark.unlink()
    wait_for(lambda: not bad.exists(), why="it is removed once that can be done")


def test_a_copy_that_was_admitted_meanwhile_is_a_failed_job_that_says_so(harness: Harness) -> None:
    """The worker, which looks first, does not know the other yet; the daemon does."""
    harness.prelude = "from trainer_tui.queue import known; known.remember = lambda *_: None"
    harness.start()
    harness.post("/v1/training/pause")
    inbox = harness.workspace.inbox
    for name in ("first.jsonl", "second.jsonl"):
        (inbox / name).write_bytes(chat_rows(2, "same"))
        wait_for(lambda name=name: harness.job(name))
    second = harness.job("second.jsonl")
    assert second["state"] == "failed"
    assert second["error"]["message"] == "second.jsonl has the same content as job 1"
    assert f"queue retry {second['id']} --accept" in second["error"]["hint"]
    wait_for(lambda: not (inbox / "second.jsonl").exists())
    assert not list(harness.workspace.trash.iterdir())
    accepted = harness.post(f"/v1/jobs/{second['id']}/retry", {"accept": True})
    assert accepted["state"] == "waiting"


def test_a_read_only_inbox_gives_all_its_files_once(harness: Harness) -> None:
    inbox = harness.workspace.inbox
    harness.prelude = READ_ONLY.format(inbox=str(inbox))
    tried = subprocess.run((sys.executable, "-c", harness.prelude), check=False)
    if tried.returncode == 77:
        pytest.skip("no mount namespaces here")
    for name in ("a", "b"):
        (inbox / f"{name}.jsonl").write_bytes(chat_rows(2, name))
    harness.start()
    harness.post("/v1/training/pause")
    for _ in range(2):
        for name in ("a", "b"):
            harness.until_job(f"{name}.jsonl", "waiting")
        looked_at(harness, f"probe{len(harness.jobs())}.jsonl")
        assert jobs_of(harness, "a.jsonl") + jobs_of(harness, "b.jsonl") == ["waiting"] * 2
        assert not harness.get("/v1/history?level=error&limit=9")["events"]
        harness.stop()
        harness.start()
    wait_for(lambda: harness.said("files cannot be removed, but became jobs earlier"))
