"""Write one checkpoint by the commit protocol: staging folder, files, manifest last, rename.

Knows nothing of torch or CUDA, so that it can run in a process of its own. A failure abandons
the staging folder and is raised; nothing is retried here (a failed fsync is final).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer_tui.safety import checkpoints, clock, durable, manifest
from trainer_tui.safety.checkpoints import CheckpointName
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import FileEntry, LedgerEntry, Manifest, Role

COMMITTED_MODE = 0o400


class ImageFile(msgspec.Struct, frozen=True):
    """A file whose bytes lie in a shared memory image."""

    name: str
    role: Role
    fd: int
    bytes: int


class SmallFile(msgspec.Struct, frozen=True):
    name: str
    role: Role
    data: bytes


class WriteRequest(msgspec.Struct, frozen=True):
    """One checkpoint. `manifest` comes without files and ledger head: they are filled in here."""

    manifest: Manifest
    completed: list[LedgerEntry]
    images: list[ImageFile]
    small: list[SmallFile]


class Written(msgspec.Struct, frozen=True, tag="written"):
    folder: str
    bytes_written: int
    seconds: float
    ledger: manifest.LedgerHead | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where checkpoints and the ledger live."""

    current_model: Path
    ledger: Path


Progress = Callable[[int], None]


def write_checkpoint(place: Place, request: WriteRequest, progress: Progress) -> Written:
    """Commit one checkpoint; afterwards it is there whole and durable, or not at all.

    Args:
        progress: called with the bytes written so far, often enough for a heartbeat.

    Raises:
        OSError: nothing was committed and the staging folder is gone.
    """
    started_s = clock.monotonic_s()
    final, committed = _final_name(place.current_model, request.manifest)
    if committed is not None:  # by a writer that died before it could say so
        durable.sync_directory(place.current_model)
        return Written(final.name, 0, clock.monotonic_s() - started_s, committed.ledger)
    _check_room(place.current_model, request)
    staging = durable.staging_name(final)
    written = _Count(progress)
    durable.make_directory(staging)
    try:
        files = [_write_image(staging, image, written) for image in request.images]
        files += [_write_small(staging, small, written) for small in request.small]
        head = request.manifest.ledger
        if request.completed:
            head = manifest.write_segment(place.ledger, head, request.completed)
        sealed = msgspec.structs.replace(request.manifest, files=files, ledger=head)
        checkpoints.commit(staging, final, manifest.seal(sealed))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # nobody reads it; the next sweep would too
        raise
    return Written(final.name, written.total, clock.monotonic_s() - started_s, head)


def _check_room(current_model: Path, request: WriteRequest) -> None:
    """Before the first byte: half a checkpoint would take the last room from everyone else.

    Raises:
        OSError: ENOSPC, with the numbers.
    """
    wanted = sum(image.bytes for image in request.images)
    wanted += sum(len(small.data) for small in request.small)
    found = os.statvfs(current_model)
    free = found.f_bavail * found.f_frsize
    if free < wanted:
        text = f"the checkpoint needs {wanted / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, text)


def _final_name(current_model: Path, wanted: Manifest) -> tuple[Path, Manifest | None]:
    """The step's own name, or a later generation when that step was committed before.

    With it the manifest found there when it is this very commit, made earlier.
    """
    generation = 0
    while (path := current_model / str(CheckpointName(wanted.global_step, generation))).exists():
        with contextlib.suppress(Corrupt):
            found = manifest.read(path)
            if (found.created_at, found.parent) == (wanted.created_at, wanted.parent):
                return path, found
        generation += 1
    return path, None


class _Count:
    def __init__(self, progress: Progress) -> None:
        self.total = 0
        self._progress = progress

    def add(self, count: int) -> None:
        self.total += count
        self._progress(self.total)


def _write_image(staging: Path, image: ImageFile, written: _Count) -> FileEntry:
    # Not closed by hand: an error's traceback may still hold a view into it.
    mapped = memoryview(mmap.mmap(image.fd, image.bytes, prot=mmap.PROT_READ))
    digest = durable.write_new_hashed(staging / image.name, mapped, COMMITTED_MODE, written.add)
    return FileEntry(image.name, image.bytes, digest, image.role)


def _write_small(staging: Path, small: SmallFile, written: _Count) -> FileEntry:
    digest = durable.write_new_hashed(
        staging / small.name, memoryview(small.data), COMMITTED_MODE, written.add
    )
    return FileEntry(small.name, len(small.data), digest, small.role)
