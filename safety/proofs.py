"""A checkpoint whose files were proven a moment ago is not hashed again by whoever loads it next.

A restore reads and hashes a version, links its files into a new checkpoint, and a trainer starts
at once: without a note of that it would hash the same bytes a second time, from the same page
cache. Invariant: the note speaks of files by device, inode, size and time of change, of one boot
of the machine, and for `VALID_S` only; anything else about it is no proof. It is a hint: losing
it costs one hashing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from trainer_tui.safety import clock, durable
from trainer_tui.safety.manifest import Manifest

NOTE = ".proven.json"
VALID_S = 120.0


class _Note(msgspec.Struct, frozen=True):
    """`files`: what each file of the manifest looked like when it had been hashed."""

    folder: str
    manifest_sha256: str
    boot: str
    at_s: float
    files: dict[str, str]


def note(folder: Path, sealed: Manifest) -> None:
    """Call once every file of `folder` was hashed and matched `sealed`. Raises OSError."""
    files = {entry.name: _identity(folder / entry.name) for entry in sealed.files}
    known = _Note(folder.name, sealed.sha256, clock.boot_id(), clock.monotonic_s(), files)
    durable.replace_view(folder.parent / NOTE, msgspec.json.encode(known))


def just_proven(folder: Path, sealed: Manifest) -> bool:
    """Whether exactly these files were hashed a moment ago."""
    try:
        known = msgspec.json.decode((folder.parent / NOTE).read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return False
    age_s = clock.monotonic_s() - known.at_s
    if known.boot != clock.boot_id() or not 0 <= age_s <= VALID_S:
        return False
    if (known.folder, known.manifest_sha256) != (folder.name, sealed.sha256):
        return False
    try:
        return known.files == {e.name: _identity(folder / e.name) for e in sealed.files}
    except OSError:
        return False


def _identity(path: Path) -> str:
    found = path.lstat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
