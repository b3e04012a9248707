"""Every way in which files come to be, with real writers and a real daemon: taken soon after the
writer is done, and never before. On a machine that does nothing else "soon" is 3 s."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, wait_for

SOON_S = 30.0  # a machine under load; `test_taken_within_three_seconds` says what is promised
SLOW_WRITER = """
import os, sys, time
with open(sys.argv[1], sys.argv[2]) as stream:
    print("open", flush=True)
    for chunk in sys.stdin.buffer:
        stream.write(chunk); stream.flush(); os.fsync(stream.fileno())
        print("wrote", flush=True)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    workspace = make_workspace(tmp_path_factory.mktemp("writers") / "ws")
    harness = Harness(workspace).start()
    harness.post("/v1/training/pause")
    yield harness
    harness.close()


class Writer:
    """A process that has a file open and writes a line when it is told to."""

    def __init__(self, path: Path, mode: str = "wb") -> None:
        command = [sys.executable, "-c", SLOW_WRITER, str(path), mode]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None and self.process.stdin is not None
        self._said, self._told = self.process.stdout, self.process.stdin
        assert self._said.readline() == b"open\n"

    def write(self, line: bytes) -> None:
        self._told.write(line)
        self._told.flush()
        assert self._said.readline() == b"wrote\n"

    def close(self) -> None:
        self._told.close()
        assert self.process.wait(10) == 0


def looked_at(daemon: Harness, name: str) -> None:
    """The inbox was looked at often enough to take anything that was ready before this."""
    (daemon.workspace.inbox / name).write_bytes(chat_rows(1, name))
    daemon.until_job(name, "waiting", SOON_S)


def test_a_slow_copy_is_taken_after_its_last_byte_and_whole(daemon: Harness) -> None:
    """scp, cp and a download write under the final name, with pauses longer than any settling."""
    rows = chat_rows(3, "slow").splitlines(keepends=True)
    writer = Writer(daemon.workspace.inbox / "slow.jsonl")
    for number, row in enumerate(rows):
        writer.write(row)
        looked_at(daemon, f"probe{number}.jsonl")  # takes a second at least
        assert daemon.job("slow.jsonl") is None, "taken while its writer has it open"
    writer.close()
    assert daemon.until_job("slow.jsonl", "waiting", SOON_S)["rows"] == 3


def test_copies_and_moves_from_anywhere_are_taken(daemon: Harness, tmp_path: Path) -> None:
    inbox = daemon.workspace.inbox
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        for folder, name in ((tmp_path, "near"), (elsewhere, "far")):
            for tool in ("cp", "mv"):
                file = folder / f"{tool}-{name}.jsonl"
                file.write_bytes(chat_rows(3, file.name))
                subprocess.run([tool, str(file), str(inbox)], check=True)
        if shutil.which("rsync"):
            file = tmp_path / "rsync.jsonl"
            file.write_bytes(chat_rows(3, "rsync"))
            subprocess.run(["rsync", "-a", str(file), str(inbox)], check=True)
            assert daemon.until_job("rsync.jsonl", "waiting", SOON_S)["rows"] == 3
        for name in ("cp-near", "mv-near", "cp-far", "mv-far"):
            assert daemon.until_job(f"{name}.jsonl", "waiting", SOON_S)["rows"] == 3
    finally:
        shutil.rmtree(elsewhere)


def test_an_old_time_stamp_does_not_make_a_file_look_settled(daemon: Harness) -> None:
    """cp -p and rsync -a set the time of the original: long ago."""
    path = daemon.workspace.inbox / "old.jsonl"
    path.write_bytes(chat_rows(2, "old"))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert daemon.until_job("old.jsonl", "waiting", SOON_S)["rows"] == 2


def test_an_editors_save_with_backup_and_swap_files_is_one_job(daemon: Harness) -> None:
    """As vim does it: a swap file, the old file renamed to a backup, a new one written."""
    inbox = daemon.workspace.inbox
    first, second = chat_rows(2, "draft"), chat_rows(3, "edited")
    (inbox / ".edit.jsonl.swp").write_bytes(b"swap")
    (inbox / "edit.jsonl").write_bytes(first)
    (inbox / "edit.jsonl").rename(inbox / "edit.jsonl~")
    writer = Writer(inbox / "edit.jsonl")
    for row in second.splitlines(keepends=True):
        writer.write(row)
    writer.close()
    job = daemon.until_job("edit.jsonl", "waiting", SOON_S)
    (inbox / "edit.jsonl~").unlink()
    (inbox / ".edit.jsonl.swp").unlink()
    looked_at(daemon, "after-edit.jsonl")
    named = [found for found in daemon.jobs() if found["name"].startswith("edit")]
    assert [found["id"] for found in named] == [job["id"]] and job["rows"] == 3


def test_what_is_appended_after_the_file_was_taken_is_a_file_of_its_own(daemon: Harness) -> None:
    path = daemon.workspace.inbox / "log.jsonl"
    path.write_bytes(chat_rows(2, "log-1"))
    first = daemon.until_job("log.jsonl", "waiting", SOON_S)
    wait_for(lambda: not path.exists(), 10)
    writer = Writer(path, "ab")  # the program that logs opens it again by its name
    writer.write(chat_rows(1, "log-2"))
    looked_at(daemon, "between.jsonl")
    assert path.exists(), "it is still open"
    writer.write(chat_rows(1, "log-3"))
    writer.close()

    def both() -> list[int]:
        found = [job for job in daemon.jobs() if job["name"] == "log.jsonl"]
        return [job["rows"] for job in found] if len(found) == 2 else []

    assert wait_for(both, SOON_S) == [2, 2]
    assert daemon.get(f"/v1/jobs/{first['id']}")["rows"] == 2


def test_a_writer_that_dies_half_way_leaves_what_is_whole_and_it_is_said(daemon: Harness) -> None:
    """A partial file cannot be told from a short one: its rows are taken, the torn line is
    rejected with its number, and the whole file, sent once more, is a job of its own."""
    inbox, rows = daemon.workspace.inbox, chat_rows(300, "torn")
    lines = rows.splitlines(keepends=True)
    torn = b"".join(lines[:200]) + lines[200][:40]
    code = (
        "import sys, time; stream = open(sys.argv[1], 'wb'); "
        "stream.write(sys.stdin.buffer.read()); stream.flush(); print('wrote', flush=True); "
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(inbox / "torn.jsonl")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None and writer.stdout is not None
    writer.stdin.write(torn)
    writer.stdin.close()
    assert writer.stdout.readline() == b"wrote\n"
    writer.kill()
    writer.wait()
    job = daemon.until_job("torn.jsonl", "waiting", SOON_S)
    assert (job["rows"], job["rejected_rows"]) == (201, 1) and "1 reject" in job["summary"]
    (reject,) = daemon.get(f"/v1/jobs/{job['id']}/report")["rejects"]
    assert reject["line"] == 201 and "ends too early" in reject["reason"]

    (inbox / "torn.jsonl").write_bytes(rows)

    def sent_again() -> bool:
        found = [one for one in daemon.jobs() if one["name"] == "torn.jsonl"]
        return sorted(one["rows"] for one in found) == [201, 300]

    wait_for(sent_again, SOON_S)


def test_taken_within_three_seconds(daemon: Harness) -> None:
    """The median of three, against three times the promise: the machine is not ours alone."""
    took = []
    for number in range(3):
        name = f"quick{number}.jsonl"
        (daemon.workspace.inbox / name).write_bytes(chat_rows(1, name))
        closed = time.monotonic()
        daemon.until_job(name, "waiting", SOON_S)
        took.append(time.monotonic() - closed)
    assert sorted(took)[1] < 9, took
    assert min(took) >= 1, "not before it has looked the same for a second"


QUICK_DEATHS = """
from trainer_tui.daemon import inbox, intake_worker
intake_worker.MODULE = "dying_worker"; inbox.FAILED_AGAIN_S = 0.1
intake_worker.WAIT_BASE_S = 12.0
"""


def test_a_file_that_ends_the_worker_is_tried_three_times_and_others_are_taken(
    tmp_path: Path,
) -> None:
    """Also one over which it sleeps: it has its time. What it had copied is cleared away."""
    harness = Harness(make_workspace(tmp_path / "ws", "poll_interval = 0.5\n"))
    harness.prelude = QUICK_DEATHS
    harness.start()
    try:
        harness.post("/v1/training/pause")
        inbox, deaths = harness.workspace.inbox, harness.workspace.root / "deaths.txt"
        (inbox / "deadly.jsonl").write_bytes(chat_rows(2, "deadly"))
        wait_for(lambda: harness.said("ended the intake worker 3 times"), SOON_S)
        looked_at(harness, "healthy.jsonl")
        assert len(deaths.read_text().splitlines()) == 3
        assert (inbox / "deadly.jsonl").exists() and harness.job("deadly.jsonl") is None
        assert not list(harness.workspace.queue.glob(".staging-*"))
        (inbox / "sleepy.jsonl").write_bytes(chat_rows(2, "sleepy"))
        wait_for(lambda: harness.said("had no answer in 12 s over this file"), SOON_S)
        (inbox / "deadly.jsonl").write_bytes(chat_rows(3, "deadly, corrected"))
        wait_for(lambda: len(deaths.read_text().splitlines()) > 3, SOON_S)
    finally:
        harness.close()


class Overflow:
    """An inotify instance of ours on the same folder, never read: does the kernel drop events?"""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        assert self.fd >= 0
        assert libc.inotify_add_watch(self.fd, os.fsencode(folder), 0x0FC2) >= 0

    def happened(self) -> bool:
        data = b""
        try:
            while chunk := os.read(self.fd, 1 << 16):
                data += chunk
        except BlockingIOError:
            pass
        finally:
            os.close(self.fd)
        at = 0
        while at < len(data):
            _, mask, _, length = struct.unpack_from("iIII", data, at)
            if mask & 0x4000:  # IN_Q_OVERFLOW
                return True
            at += 16 + length
        return False


def test_a_file_whose_event_the_kernel_dropped_is_found_by_looking(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip("the kernel keeps more events than a test should make")
    harness = Harness(make_workspace(tmp_path / "ws", "poll_interval = 2.0\n")).start()
    try:
        harness.post("/v1/training/pause")
        inbox = harness.workspace.inbox
        looked_at(harness, "before.jsonl")
        ours = Overflow(inbox)
        assert harness.process is not None
        harness.process.send_signal(signal.SIGSTOP)
        try:
            names = [inbox / f".noise{number}" for number in range(8)]
            for _ in range(limit // 16 + 100):
                for name in names:  # different names, so that the kernel merges none
                    name.touch()
                    name.unlink()
            (inbox / "lost.jsonl").write_bytes(chat_rows(2, "lost"))
        finally:
            harness.process.send_signal(signal.SIGCONT)
        assert ours.happened(), "nothing was dropped, so nothing was tried"
        assert harness.until_job("lost.jsonl", "waiting", SOON_S)["rows"] == 2
        looked_at(harness, "after.jsonl")
    finally:
        harness.close()


LATE = """
import time
from trainer_tui.daemon import inbox
real, place = inbox.awatch, {place!r}
def late(*arguments, **more):
    time.sleep(0.5)  # the first look is over, and the kernel does not watch yet
    open(place, "wb").write({rows!r})
    return real(*arguments, **more)
inbox.awatch = late
"""


def test_a_file_that_comes_before_the_kernel_watches_is_taken_soon(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", "poll_interval = 600\n")
    harness = Harness(workspace)
    harness.prelude = LATE.format(
        place=str(workspace.inbox / "late.jsonl"), rows=chat_rows(3, "late")
    )
    try:
        harness.start()
        wait_for(lambda: harness.job("late.jsonl"), SOON_S)
    finally:
        harness.close()
