"""Which contents the queue has ever taken: `known_files`, one line for each, appended.

Invariant: a content that is queued, trained or failed is known; one whose job a person removed
before it was trained is forgotten. A lost file costs only the memory of jobs long expired: those
that still have a directory are known from there.
"""

from __future__ import annotations

from pathlib import Path

from trainer_tui.safety import durable

FILE_NAME = "known_files"
END = "."  # a line without it was torn


def read(queue: Path) -> dict[str, int]:
    """sha256 -> job id. A torn last line (power cut) is left out."""
    known: dict[str, int] = {}
    try:
        lines = (queue / FILE_NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return known
    for line in lines[:-1]:
        parts = line.decode("ascii", "replace").split()
        if len(parts) != 3 or parts[2] != END or not parts[1].isdigit():
            continue
        sha256, job_id = parts[0], int(parts[1])
        if job_id:
            known[sha256] = job_id
        else:
            known.pop(sha256, None)
    return known


def remember(queue: Path, sha256: str, job_id: int) -> None:
    durable.append_line(queue / FILE_NAME, f"{sha256} {job_id} {END}")


def forget(queue: Path, sha256: str) -> None:
    durable.append_line(queue / FILE_NAME, f"{sha256} 0 {END}")
