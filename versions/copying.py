"""Copies that can be interrupted: each file goes on where it ended, and must match its hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from trainer_tui.safety import durable, manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import FileEntry
from trainer_tui.versions import check
from trainer_tui.versions.layout import OPTIMIZER_PART
from trainer_tui.versions.records import VERSION_RECORD, Version

Progress = Callable[[str, int, int], None]  # version, bytes of it copied so far, bytes in all


def segment_is_sound(name: str, data: bytes) -> bool:
    """A ledger segment's name carries the start of its hash."""
    return name.split("-")[-1].removesuffix(".json") == hashlib.sha256(data).hexdigest()[:16]


class Telling:
    """Adds up what was copied of one version."""

    def __init__(self, version: Version, progress: Progress | None) -> None:
        self._version = version
        self._progress = progress
        self._copied = 0

    def __call__(self, size: int) -> None:
        self._copied = min(self._copied + size, self._version.bytes)  # a part may come twice
        if self._progress:
            self._progress(self._version.name, self._copied, self._version.bytes)


class _Stopped(Exception):
    """The copy was asked to stop; what is there stays for the next try."""


def copy_folder(
    source: Path,
    partial: Path,
    told: Callable[[int], None] | None,
    should_stop: Callable[[], bool],
) -> bool:
    """Copy a version's files and records into `partial`, going on where an earlier try ended.

    Args:
        partial: made when it is not there; the folder that it stands in must be.
        should_stop: asked before every file and after every chunk; what it raises goes through.

    Returns:
        False when it was asked to stop.

    Raises:
        Corrupt: a file of the source does not match its hash.
    """

    def after_chunk(size: int) -> None:
        if told:
            told(size)
        _stop_if(should_stop)

    parts = [source]
    if check.has_optimizer(source):
        parts.append(source / OPTIMIZER_PART)
    for part in parts:
        target = partial if part is source else partial / OPTIMIZER_PART
        durable.make_directory(target, parents=False)
        try:
            for entry in manifest.read(part).files:
                _stop_if(should_stop)
                _copy_file(part, entry, target, after_chunk)
        except _Stopped:
            return False
        names = [manifest.MANIFEST_NAME] + ([VERSION_RECORD] if part is source else [])
        for name in names:
            _copy_record(part / name, target / name)
    return True


def _copy_record(source: Path, target: Path) -> None:
    """One that an earlier try left is replaced when it is not the same: it may have been damaged
    then, and be sound now."""
    data = source.read_bytes()
    if not target.exists() or target.read_bytes() != data:
        durable.replace(target, data, 0o400)


def _stop_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise _Stopped


def _copy_file(source: Path, entry: FileEntry, target: Path, told: Callable[[int], None]) -> None:
    path = target / check.checked_name(entry.name)
    for above in reversed(path.relative_to(target).parents):
        durable.make_directory(target / above, parents=False)
    for _ in range(2):  # an earlier part may turn out wrong: then once more from the start
        fd = os.open(source / entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            digest, _ = durable.copy_resumed(fd, path, told=told)
        finally:
            os.close(fd)
        if digest == entry.sha256:
            durable.sync_directory(path.parent)
            _forget_pages(path)
            return
        durable.remove_file(path)
    raise Corrupt(f"{source.name}: {entry.name} does not match its hash and was not copied")


def _forget_pages(path: Path) -> None:
    """So that reading it back asks the disk, not the memory that it was just written from."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
