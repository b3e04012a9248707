"""Which contents the queue has ever taken: `known_files`, one line for each, appended.

Invariant: a content that is queued, trained or failed is known; one whose job a person removed
before it was trained is forgotten. A lost file costs only the memory of jobs long expired: those
that still have a directory are known from there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import durable

FILE_NAME = "known_files"


@dataclass(frozen=True, slots=True)
class KnownFile:
    sha256: str
    job_id: int


def read(queue: Path) -> dict[str, int]:
    """sha256 -> job id. A torn last line (power cut) is left out."""
    known: dict[str, int] = {}
    try:
        lines = (queue / FILE_NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return known
    for line in lines[:-1]:
        parts = line.decode("ascii", "replace").split()
        if len(parts) != 2 or not parts[1].isdigit():
            continue
        sha256, job_id = parts[0], int(parts[1])
        if job_id:
            known[sha256] = job_id
        else:
            known.pop(sha256, None)
    return known


def remember(queue: Path, sha256: str, job_id: int) -> None:
    _append(queue, f"{sha256} {job_id}\n")


def forget(queue: Path, sha256: str) -> None:
    _append(queue, f"{sha256} 0\n")


def _append(queue: Path, line: str) -> None:
    path = queue / FILE_NAME
    created = not path.exists()
    durable._operation("append", path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = "\n" + line  # the last append was torn
        os.write(fd, line.encode())
        durable.sync_file(fd, path)
    finally:
        os.close(fd)
    if created:
        durable.sync_directory(queue)
