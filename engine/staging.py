"""Where a checkpoint's image lies until it is written: in memory, or on disk where that is short.

Two images hold weights and optimizer, as much host memory as both together. A machine that has
less free would be pushed into swap, or the trainer killed; there the image is a nameless file
beside the checkpoints, which the kernel writes out and reads back page by page. It costs the disk
twice and the copy some speed; what is committed is the same.

Invariant: the memory is looked at before a page of it is taken. The file has no name, so nothing
is left behind whatever ends the process.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

HEADROOM_BYTES = 2 << 30  # left for everything else on the machine
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Backing:
    """An open file of the wanted size. `in_memory`: it may be page-locked."""

    fd: int
    in_memory: bool


def available_bytes() -> int | None:
    """Host memory that can be taken without swapping; None where the kernel does not say."""
    try:
        text = MEMINFO.read_text("ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def fits_in_memory(wanted_bytes: int) -> bool:
    """Whether so much may be taken with headroom left. A sixteenth of that headroom always may:
    tiny models train on tiny machines."""
    available = available_bytes()
    if available is None or wanted_bytes <= HEADROOM_BYTES // 16:
        return True
    return wanted_bytes + HEADROOM_BYTES <= available


def backing(wanted_bytes: int, in_memory: bool, folder: Path) -> Backing:
    """Space for an image; `folder` is on the disk that would hold it.

    Raises:
        OSError: no such space, in memory or on the disk.
    """
    if in_memory:
        fd = os.memfd_create("checkpoint-image", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            fd = os.dup(file.fileno())
        # Now rather than as a bus error in the middle of a copy.
        os.posix_fallocate(fd, 0, wanted_bytes)
    os.ftruncate(fd, wanted_bytes)
    return Backing(fd, in_memory)
