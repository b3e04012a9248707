"""Which step is being run, where it outlives the process: a mapped page in `state/`.

Invariant: whatever ends the process inside a step leaves the page saying so; a step that ended in
any other way does not. Writing it costs microseconds and touches no disk. It means nothing after
a reboot: a power cut is nobody's fault.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from trainer_tui.safety import clock
from trainer_tui.safety.messages import Train
from trainer_tui.safety.workspace import Workspace

PAGE_BYTES = 16 << 10  # a workspace's path may be 4 KiB long, and JSON may escape it
_LENGTH_BYTES = 4
_HEAD = 1 + _LENGTH_BYTES  # byte 0: 1 while the step runs


class Place(msgspec.Struct, frozen=True):
    """A step of a file's plan, with what it takes to open the file again. `boot`: of the machine
    when it ran."""

    job_id: int
    name: str
    folder: str
    file_sha256: str
    plan: str
    epoch: int
    step_index: int
    boot: str = ""

    @property
    def train(self) -> Train:
        return Train(self.job_id, self.name, self.folder, self.file_sha256)


class StepMark:
    """The trainer's side; one for each file in hand."""

    def __init__(self, workspace: Workspace) -> None:
        self._boot = clock.boot_id()
        self._page = _map(_file(workspace))

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Around a step."""
        data = msgspec.json.encode(msgspec.structs.replace(place, boot=self._boot))
        self._page[0] = 0
        if len(data) + _HEAD <= PAGE_BYTES:
            self._page[1:_HEAD] = len(data).to_bytes(_LENGTH_BYTES, "little")
            self._page[_HEAD : _HEAD + len(data)] = data
            self._page[0] = 1
        try:
            yield
        finally:
            self._page[0] = 0

    def close(self) -> None:
        self._page.close()


def blame_last(workspace: Workspace) -> None:
    """The process ends for what a step did although it came back from it: a GPU says later."""
    with contextlib.suppress(OSError), contextlib.closing(_map(_file(workspace))) as page:
        page[0] = 1


def take(workspace: Workspace) -> Place | None:
    """The step in which the last process ended; None when it ended elsewhere. Asked once."""
    if not _file(workspace).exists():
        return None
    with contextlib.closing(_map(_file(workspace))) as page:
        running, size = page[0], int.from_bytes(page[1:_HEAD], "little")
        page[0] = 0
        data = page[_HEAD : _HEAD + size]
    try:
        place = msgspec.json.decode(data, type=Place) if running else None
    except msgspec.MsgspecError:
        return None
    return place if place is not None and place.boot == clock.boot_id() else None


def _file(workspace: Workspace) -> Path:
    return workspace.state / "step_in_hand"


def _map(file: Path) -> mmap.mmap:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(file, flags, 0o600)
    try:
        os.ftruncate(fd, PAGE_BYTES)
        return mmap.mmap(fd, PAGE_BYTES)
    finally:
        os.close(fd)
