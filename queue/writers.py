"""Whether anybody has a file open for writing: asked of the kernel, or looked for.

Limits: another user's file gives no lease without CAP_LEASE, and the descriptors of another user's
processes cannot be seen. What is then left is how long the file has looked the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Literal

Answer = Literal["no", "yes", "unknown"]
PROCESSES = Path("/proc")


def ask(fd: int) -> Answer:
    """Ask the kernel by a read lease, given back at once (fcntl(2), "Leases").

    "unknown": the file is another user's, so we get no lease and may not see its writer. On a
    filesystem without leases only the processes that can be seen are asked.
    """
    with contextlib.suppress(ValueError):  # not the main thread: the process has set it already
        # Whoever opens the file while we hold the lease breaks it, which sends SIGIO; its default
        # action would end us.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as problem:
        if problem.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return "yes"
        if _open_for_writing(os.fstat(fd)):
            return "yes"
        return "unknown" if problem.errno in (errno.EACCES, errno.EPERM) else "no"
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "no"


def _open_for_writing(info: os.stat_result) -> bool:
    """Whether a process that we may look into writes it (proc(5): `fd`, `fdinfo`)."""
    for process in PROCESSES.iterdir():
        if not process.name.isdigit():
            continue
        # Another user's process, or one that has just ended.
        with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
            if any(_writes(process, name, info) for name in os.listdir(process / "fd")):  # noqa: PTH208 - names
                return True
    return False


def _writes(process: Path, descriptor: str, info: os.stat_result) -> bool:
    try:
        found = (process / "fd" / descriptor).stat()
        if (found.st_dev, found.st_ino) != (info.st_dev, info.st_ino):
            return False
        lines = (process / "fdinfo" / descriptor).read_text().splitlines()
    except OSError:
        return False  # closed meanwhile, or it leads to what we may not look at
    flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), 0)
    return flags & os.O_ACCMODE != os.O_RDONLY
