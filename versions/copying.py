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

    def step(size: int) -> None:
        if told:
            told(size)
        if should_stop():
            raise _Stopped

    try:
        _copy_part(source, partial, (manifest.MANIFEST_NAME, VERSION_RECORD), step)
        _copy_optimizer(source, partial, step)
    except _Stopped:
        return False
    return True


def _copy_part(
    source: Path, target: Path, record_names: tuple[str, ...], step: Callable[[int], None]
) -> None:
    """The records come last, so a part that has its manifest is all there."""
    durable.make_directory(target, parents=False)
    for entry in manifest.read(source).files:
        step(0)
        _copy_file(source, entry, target, step)
    for name in record_names:
        _copy_record(source / name, target / name)


def _copy_optimizer(source: Path, partial: Path, step: Callable[[int], None]) -> None:
    """Retention may let go of it at any moment, by one rename: then the copy has none either, and
    nothing of it stays behind there that no manifest names."""
    part, target = source / OPTIMIZER_PART, partial / OPTIMIZER_PART
    try:
        if check.has_optimizer(source):
            _copy_part(part, target, (manifest.MANIFEST_NAME,), step)
    except (Corrupt, FileNotFoundError):
        if check.has_optimizer(source) or not source.exists():  # then it is not that
            raise
    if not check.has_optimizer(source) and target.exists():
        step(0)
        durable.remove_tree(target)


def _copy_record(source: Path, target: Path) -> None:
    """One that an earlier try left is replaced when it is not the same: it may have been damaged
    then, and be sound now."""
    data = source.read_bytes()
    if not target.exists() or target.read_bytes() != data:
        durable.replace(target, data, 0o400)


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
