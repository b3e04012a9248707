"""A control group (v2) of its own for a trainer, so that all it started can be ended at once.

`cgroup.kill` ends a whole group atomically, whatever forks, clears its environment or makes a
session of its own meanwhile. Used only where the system gave our group to us (a systemd unit with
`Delegate=yes`, or one of a user's own); elsewhere everything here answers None or False and the
tag in the environment (`safety.processes`) does the work. Standard library only: the watchdog
imports this.

Source: kernel, Documentation/admin-guide/cgroup-v2.rst; systemd, CGROUP_DELEGATION.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PREFIX = "trainer-tui."
DELEGATE_MARK = "user.delegate"
EMPTY_WAIT_S = 2.0  # what was killed takes a moment to be gone


def folder_of(pid: int | str = "self") -> Path | None:
    """The v2 group that a process is in; None without v2, or when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = _mount_point()
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    return mount / inside.lstrip("/") if mount is not None and inside is not None else None


def _mount_point() -> Path | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                return Path(before.split()[4])
    return None


def delegated(folder: Path) -> bool:
    """Whether it is ours to make groups in: owned by this user, or marked so by systemd."""
    try:
        if not os.access(folder / "cgroup.procs", os.W_OK):
            return False
        if os.geteuid() != 0 and folder.stat().st_uid == os.geteuid():
            return True
        return os.getxattr(folder, DELEGATE_MARK) == b"1"
    except OSError:
        return False


def make(name: str, parent: Path | None = None) -> Path | None:
    """A new group below ours; None where we may not make one."""
    parent = parent or folder_of()
    if parent is None or not delegated(parent):
        return None
    folder = parent / f"{PREFIX}{name}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def put(folder: Path, pid: int) -> bool:
    """Move a process there; what it starts from now on is there, too."""
    try:
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def kill(folder: Path) -> bool:
    """SIGKILL to all that is in it and below; False where the kernel cannot (before 5.14)."""
    try:
        (folder / "cgroup.kill").write_text("1")
    except OSError:
        return False
    return True


def kill_with(pid: int) -> bool:
    """End a process with the whole group that was made for it; False when it has none."""
    folder = folder_of(pid)
    return folder is not None and folder.name.startswith(PREFIX) and kill(folder)


def empty(folder: Path) -> bool:
    try:
        return "populated 0" in (folder / "cgroup.events").read_text()
    except OSError:
        return True


def remove(folder: Path) -> None:
    """Waits a moment for it to be empty; one that is not stays for the next `sweep`."""
    deadline_s = time.monotonic() + EMPTY_WAIT_S
    while not empty(folder) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        folder.rmdir()


def sweep() -> None:
    """Remove the empty groups that earlier trainers left."""
    ours = folder_of()
    if ours is not None and delegated(ours):
        for folder in ours.glob(f"{PREFIX}*"):
            if empty(folder):
                remove(folder)
