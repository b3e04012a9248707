"""The disk: full, without inodes, and failing, at intake, at saves, and under status and history.

The workspace lies on a tmpfs of its own (needs root); what fails is injected by strace(1) into the
daemon or the checkpoint writer while they work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import invariants
import pytest
from daemon_harness import chat_rows, wait_for
from guarded import SETTINGS, Guarded, real_workspace

from trainer_tui.safety import clock

SIZE, INODES = "64m", 3000
FULL_S = 12.0  # longer than a round of the disk's watch
FLOOR = SETTINGS.replace("min_free_gb = 0.0", "min_free_gb = 0.006").replace(
    "min_free_share = 0.000001", "min_free_share = 0.5"
)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A mounted tmpfs; skipped where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={SIZE},nr_inodes={INODES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "torture", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_bytes(place: Path) -> Callable[[], None]:
    """Take every byte. Returns what gives them back."""
    file = place / "filler"
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    with file.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 512)
    return lambda: file.unlink()


def fill_inodes(place: Path) -> Callable[[], None]:
    folder = place / "fillers"
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in range(10 * INODES):
            (folder / str(number)).touch()
    return lambda: shutil.rmtree(folder)


FILLS = {"disk full": fill_bytes, "no inodes": fill_inodes}
PHASES = ("intake", "save", "idle")


@pytest.mark.end_to_end
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("settings", [SETTINGS, FLOOR], ids=["suddenly", "below the floor"])
def test_a_full_disk_loses_nothing_and_heals_by_itself(
    small_disk, base, record, torture, settings, request
):
    if not torture:
        pytest.skip("minutes long: make torture")
    how = request.node.callspec.id
    house = Guarded(real_workspace(small_disk / "ws", base, settings))
    dropped: dict[str, bytes] = {}

    def write_hidden(name: str, rows: int) -> Path:
        dropped[name] = chat_rows(rows, name)
        hidden = house.workspace.inbox / f".{name}.part"
        hidden.write_bytes(dropped[name])
        return hidden

    try:
        write_hidden("first.jsonl", 30).rename(house.workspace.inbox / "first.jsonl")
        house.begin()
        house.all_done(1, 90)
        for fill_name, fill in FILLS.items():
            for phase in PHASES:
                name = f"{fill_name.replace(' ', '-')}-{phase}.jsonl"
                with record.run(f"{fill_name} at {phase}, {how}", "full_disk") as seconds:
                    hidden = write_hidden(name, 1500 if phase == "save" else 30)
                    if phase == "save":
                        hidden.rename(house.workspace.inbox / name)
                        wait_for(lambda n=name: (house.job(n) or {}).get("fraction"), 60, "begun")
                    empty = fill(small_disk)
                    if phase == "intake":
                        hidden.rename(house.workspace.inbox / name)
                    until_s = clock.monotonic_s() + FULL_S
                    wait_for(lambda u=until_s: clock.monotonic_s() > u, FULL_S + 5)
                    empty()
                    moment_s = time.time()
                    if phase == "idle":
                        hidden.rename(house.workspace.inbox / name)
                    house.all_done(len(dropped), 120)
                    seconds.append(time.time() - moment_s)
                    invariants.checkpoints_are_sound(house.workspace)
        house.end()
        invariants.check(house.workspace, dropped)
    finally:
        house.sweep()


# Who, which system calls, how they fail, and which times: strace's `when`.
INJECTED = [
    ("writer", "fsync", errno.EIO, "1"),
    ("writer", "fsync", errno.EIO, "1+"),
    ("writer", "rename,renameat,renameat2", errno.EROFS, "1"),
    ("writer", "write,pwrite64,copy_file_range,sendfile", errno.ENOSPC, "3..6"),
    ("daemon", "fsync", errno.EIO, "1"),
    ("daemon", "fsync", errno.EIO, "1+"),
    ("daemon", "rename,renameat,renameat2", errno.EXDEV, "1+"),
    ("daemon", "rename,renameat,renameat2", errno.EROFS, "1..5"),
]
INJECT_S = 6.0


@contextlib.contextmanager
def failing(pid: int, calls: str, number: int, when: str) -> Iterator[None]:
    """While the block runs, these calls of all threads of the process fail."""
    name = errno.errorcode[number]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid)]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:error={name}:when={when}"]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go and ends
        tracer.wait(10)


@pytest.mark.end_to_end
@pytest.mark.timeout(1200)
def test_failing_system_calls_are_survived(tmp_path, base, record, torture, rounds):
    if not torture:
        pytest.skip("minutes long: make torture")
    if shutil.which("strace") is None or os.geteuid() != 0:
        pytest.skip("needs strace and root")
    house = Guarded(real_workspace(tmp_path / "ws", base))
    dropped: dict[str, bytes] = {}

    def drop(rows: int) -> None:
        name = f"{len(dropped)}.jsonl"
        dropped[name] = chat_rows(rows, name)
        house.drop(name, dropped[name])

    try:
        drop(1000)
        house.begin()
        for who, calls, number, when in INJECTED * rounds:
            what = f"{who}: {calls.partition(',')[0]} {errno.errorcode[number]} ({when})"
            house.at_work(90)
            with record.run(f"injected, {what}", "failing_system") as seconds:
                with failing(house.one(who).pid, calls, number, when):
                    drop(600)
                    until_s = clock.monotonic_s() + INJECT_S
                    wait_for(lambda u=until_s: clock.monotonic_s() > u, INJECT_S + 5)
                moment_s = time.time()
                house.all_done(len(dropped), 120, resume=True)
                seconds.append(time.time() - moment_s)
                invariants.checkpoints_are_sound(house.workspace)
                drop(1000)  # so that there is work for the next
        house.all_done(len(dropped), 120)
        house.end()
        invariants.check(house.workspace, dropped)
    finally:
        house.sweep()
