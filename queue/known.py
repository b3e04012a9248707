"""Which contents the queue has ever taken: `known_files`, one line for each, appended.

Invariant: a content that is queued, trained or failed is known; one whose job a person removed
before it was trained is forgotten. A lost file costs only the memory of jobs long expired: those
that still have a directory are known from there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer_tui.queue.job import Meta
from trainer_tui.safety import durable, state_file
from trainer_tui.safety.errors import Refused, is_lack
from trainer_tui.safety.workspace import PRIORITIES

FILE_NAME = "known_files"
_ID = re.compile(r"[0-9]{1,19}")
END = "."  # a line without it was torn


def read(queue: Path) -> tuple[dict[str, int], str]:
    """sha256 -> job id. A torn last line (power cut) is left out.

    Returns:
        Also what people should know: a list that cannot be read is set aside and begun anew.
    """
    found = Known(queue)
    found.catch_up()
    if not found.problem:
        return found.holders, ""
    aside = state_file.set_aside(queue / FILE_NAME)
    return {}, f"{found.problem}{aside}; files trained long ago may come again"


class Known:
    """The list followed by another process than the one that writes it: a question reads only
    what was appended since the last, so it costs the same however long the list has become."""

    def __init__(self, queue: Path) -> None:
        self._path = queue / FILE_NAME
        self._inode, self._read_bytes = 0, 0
        self.holders: dict[str, int] = {}
        self.problem = ""  # why nothing is known: the queue still knows its own jobs

    def holder_of(self, sha256: str) -> int | None:
        """The job that has this content, or had it."""
        self.catch_up()
        return self.holders.get(sha256)

    def catch_up(self) -> None:
        self.problem = ""
        try:
            added = self._added()
        except OSError as problem:
            if is_lack(problem):
                raise
            self._inode, self._read_bytes, self.holders = 0, 0, {}
            if not isinstance(problem, FileNotFoundError):
                self.problem = f"{FILE_NAME} cannot be read ({problem.strerror})"
            return
        for line in added.split(b"\n"):
            self._note(line)

    def _added(self) -> bytes:
        """Whole lines since the last look. Raises OSError."""
        with self._path.open("rb") as stream:
            info = os.fstat(stream.fileno())
            if info.st_ino != self._inode or info.st_size < self._read_bytes:
                self._inode, self._read_bytes, self.holders = info.st_ino, 0, {}
            stream.seek(self._read_bytes)
            whole, end, _ = stream.read().rpartition(b"\n")
        self._read_bytes += len(whole) + len(end)
        return whole

    def _note(self, line: bytes) -> None:
        parts = line.decode("ascii", "replace").split()
        if len(parts) != 3 or parts[2] != END or not _ID.fullmatch(parts[1]):
            return
        sha256, job_id = parts[0], int(parts[1])
        if job_id:
            self.holders[sha256] = job_id
        else:
            self.holders.pop(sha256, None)


def refuse_in_two(holders: dict[str, int], folder: str, job_id: int, meta: Meta) -> None:
    """Whether a removed job may come back into `folder`: not to train what was added again since.

    A job without another of its content is forgotten when it is removed, so a later one that is
    known came in its place. One added beside it with `--again` is not known: both were wanted.

    Raises:
        Refused: naming the other job.
    """
    other = holders.get(meta.file_sha256, 0)
    if folder in PRIORITIES and other > job_id:
        raise Refused(
            f"job {job_id} ({meta.original_name}) was added again as job {other} since it was "
            "removed, so it stays in the trash",
            f"trainer-tui queue show {other}; to train the file twice, add it with --again",
        )


def remember(queue: Path, sha256: str, job_id: int) -> None:
    durable.append_line(queue / FILE_NAME, f"{sha256} {job_id} {END}")


def forget(queue: Path, sha256: str) -> None:
    durable.append_line(queue / FILE_NAME, f"{sha256} 0 {END}")
