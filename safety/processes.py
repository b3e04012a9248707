"""Processes, named so that a recycled pid is never mistaken for one of ours.

A process is (pid, start time in clock ticks since boot; proc(5), field 22 of `stat`) or a pidfd.
Ours carry `TRAINER_TUI_RUN=<workspace id>:<run id>` in their environment. Standard library only:
the watchdog imports this.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_KEY = "TRAINER_TUI_RUN"
_ENVIRON_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessId:
    pid: int
    start_ticks: int


def identify(pid: int) -> ProcessId | None:
    """Who has this pid now; None when nobody has, or only a zombie not yet reaped."""
    found = _stat(pid)
    return None if found is None or found[0] in "ZX" else ProcessId(pid, found[1])


def state_of(process: ProcessId) -> str | None:
    """The one-letter state (R, S, D, T, Z …); None when this very process is gone."""
    found = _stat(process.pid)
    return found[0] if found is not None and found[1] == process.start_ticks else None


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses: count from the last one.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def children(process: ProcessId) -> list[ProcessId]:
    """Its living children (of its main thread); one small file, no look at all of /proc."""
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = [identify(int(pid)) for pid in text.split()]
    return [child for child in found if child is not None]


def resident_bytes(process: ProcessId) -> int:
    """Physical memory it has now; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process.pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_written(process: ProcessId) -> int:
    """What it has given to write calls in its life (proc(5), `wchar`); 0 when that is not told."""
    try:
        text = Path(f"/proc/{process.pid}/io").read_text()
    except OSError:  # gone, or another user's
        return 0
    fields = dict(line.split(": ") for line in text.splitlines())
    return int(fields.get("wchar", 0))


def alive(process: ProcessId) -> bool:
    state = state_of(process)
    return state is not None and state not in "ZX"


@contextlib.contextmanager
def opened(process: ProcessId) -> Iterator[int | None]:
    """A pidfd for exactly this process; None when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The pid may have been reused before we opened it; after, the pidfd pins it.
        yield fd if alive(process) else None
    finally:
        os.close(fd)


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone."""
    with opened(process) as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        return True


def wait_gone(process: ProcessId, timeout_s: float) -> bool:
    """Wait until the process has ended; works for processes that are not our children."""
    with opened(process) as fd:
        if fd is None:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))


def workspace_tag(root: Path) -> str:
    """What every process of one workspace carries in its environment; survives a renamed folder."""
    found = root.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}"


def tagged(tag: str) -> list[ProcessId]:
    """Processes of this user whose environment says `TRAINER_TUI_RUN=<tag>…`, oldest first.

    The tag is inherited, so grandchildren in a session of their own are found too. What follows
    the tag begins with ":" or "/": inode 12 is not taken for inode 123.
    """
    wanted = f"{RUN_KEY}={tag}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if entry.stat().st_uid != os.geteuid():
                continue
            with open(f"/proc/{entry.name}/environ", "rb") as stream:  # noqa: PTH123
                environ = stream.read(_ENVIRON_LIMIT_BYTES)
            if any(_carries(item, wanted) for item in environ.split(b"\0")):
                process = identify(int(entry.name))
                if process is not None:
                    found.append(process)
    return sorted(found, key=lambda process: process.start_ticks)


def _carries(item: bytes, wanted: bytes) -> bool:
    rest = item[len(wanted) : len(wanted) + 1]
    return item.startswith(wanted) and (wanted.endswith(b":") or rest in (b"", b":", b"/"))
