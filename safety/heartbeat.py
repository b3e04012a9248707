"""A page of shared memory where the trainer says what it is doing; readable when it is wedged.

Layout: one 72-byte record, little endian. The writer never waits and the reader never blocks it;
a reader that catches a half-written record sees a checksum that does not match and looks again.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from trainer_tui.safety import clock

_RECORD = struct.Struct(
    "<QQIIQQQQQ"
)  # sequence, monotonic_ns, phase, pid, step, micro, bytes, writer's pid, crc32 of all before
PAGE_BYTES = 4096


class Phase(IntEnum):
    """What the trainer is doing now; each has its own patience (hang detection)."""

    START = 0
    IMPORT = 1
    LOAD = 2
    COMPILE = 3
    DATA = 4
    MICRO_STEP = 5
    OPTIMIZER = 6
    EVAL = 7
    STAGE = 8
    PERSIST = 9
    IDLE = 10
    PAUSED = 11
    SHUTDOWN = 12

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Beat:
    monotonic_ns: int
    phase: Phase
    pid: int
    global_step: int
    micro_step: int
    bytes_written: int
    writer_pid: int = 0  # the checkpoint writer while a commit is under way, else 0


class HeartbeatWriter:
    """Trainer's side. `beat` costs a microsecond and touches no disk (the file is mapped)."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, PAGE_BYTES)
            self._page = mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
        self._sequence = 0
        self._pid = os.getpid()
        self.phase = Phase.START
        self.global_step = 0
        self.micro_step = 0
        self.bytes_written = 0
        self.writer_pid = 0

    def beat(
        self,
        phase: Phase | None = None,
        *,
        global_step: int | None = None,
        micro_step: int | None = None,
        bytes_written: int | None = None,
    ) -> None:
        """Say that something moved. Called for progress only, never by a timer."""
        if phase is not None:
            self.phase = phase
        if global_step is not None:
            self.global_step = global_step
        if micro_step is not None:
            self.micro_step = micro_step
        if bytes_written is not None:
            self.bytes_written = bytes_written
        self._sequence += 1
        fields = (clock.monotonic_ns(), self.phase, self._pid)
        counts = (self.global_step, self.micro_step, self.bytes_written, self.writer_pid)
        record = _RECORD.pack(self._sequence, *fields, *counts, 0)
        self._page[: len(record)] = record[:-8] + zlib.crc32(record[:-8]).to_bytes(8, "little")


def read(path: Path) -> Beat | None:
    """The last beat, or None when there is none (yet)."""
    for _ in range(3):
        try:
            with path.open("rb") as page:
                record = page.read(_RECORD.size)
        except FileNotFoundError:
            return None
        if len(record) < _RECORD.size:
            return None
        _, at_ns, phase, pid, step, micro, written, writer, last = _RECORD.unpack(record)
        if last == zlib.crc32(record[:-8]):  # else it was read while it was written
            return Beat(at_ns, Phase(phase), pid, step, micro, written, writer)
    return None
