"""Is a folder what its manifest says? A cheap look for lists, the whole proof before trusting.

Limits: a look compares names, sizes and rights only. A proof hashes every file and opens every
tensor; it is remembered per file by (device, inode, size, mtime), so hard links are hashed once.
Damage that a disk does afterwards is found by `verify` alone, which never believes the memory.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from trainer_tui.safety import clock, disk, durable, manifest
from trainer_tui.safety.checkpoints import HASHING_THREADS, WORTH_A_THREAD_BYTES, verify_file
from trainer_tui.safety.errors import Corrupt, Unreadable, is_lack
from trainer_tui.safety.manifest import FileEntry, Manifest
from trainer_tui.versions.layout import OPTIMIZER_PART, Layout
from trainer_tui.versions.records import State, read_version

log = logging.getLogger("versions")
_CACHE_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Look:
    """What a folder seems to be. `sealed` is None when there is no usable manifest."""

    state: State
    problem: str
    sealed: Manifest | None


def look(folder: Path) -> Look:
    """Compare names and sizes with the manifest; milliseconds, whatever the model's size.

    What cannot be read is the state of this folder, never an error: the others go on.
    """
    try:
        return _look(folder)
    except OSError as problem:
        if is_lack(problem):
            raise
        return Look("unreadable", f"{folder.name} cannot be read: {problem.strerror}", None)


def looks_sound(folder: Path) -> bool:
    """A look at it, and at its optimizer part when it has one."""
    part = folder / OPTIMIZER_PART
    return look(folder).state == "ok" and (look(part).state == "ok" or not has_optimizer(folder))


def _look(folder: Path) -> Look:
    try:
        sealed = manifest.read(folder)
    except Unreadable as problem:
        return Look("unreadable", problem.message, None)
    except Corrupt as problem:
        present = (folder / manifest.MANIFEST_NAME).exists()
        return Look("corrupt" if present else "incomplete", problem.message, None)
    for entry in sealed.files:
        try:
            path = folder / checked_name(entry.name)
            found = path.lstat()
        except Corrupt as problem:
            return Look("corrupt", problem.message, sealed)
        except FileNotFoundError:
            return Look("incomplete", f"{folder.name}: {entry.name} is missing", sealed)
        if not stat.S_ISREG(found.st_mode):
            return Look("corrupt", f"{folder.name}: {entry.name} is not a plain file", sealed)
        if found.st_size != entry.bytes:
            text = f"{entry.name} has {found.st_size} bytes, not {entry.bytes}"
            return Look("corrupt", f"{folder.name}: {text}", sealed)
        if not os.access(path, os.R_OK, effective_ids=True):
            text = f"{entry.name} cannot be read: {os.strerror(errno.EACCES)}"
            return Look("unreadable", f"{folder.name}: {text}", sealed)
    return Look("ok", "", sealed)


def checked_name(name: str) -> str:
    """Raises Corrupt for a name that would lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise Corrupt(f"the manifest names a file outside its folder: {name!r}")
    return name


class Verified:
    """Memory of files whose content was hashed and found right. A cache: losing it costs time.

    Without a layout it is in this process only, and `save` has nothing to do.
    """

    def __init__(self, layout: Layout | None) -> None:
        self._path = layout.verified_cache if layout else None
        self._known: dict[str, str] | None = None if layout else {}

    def knows(self, path: Path, entry: FileEntry) -> bool:
        return self._load().get(_identity(path)) == entry.sha256

    def learn(self, path: Path, entry: FileEntry) -> None:
        self._load()[_identity(path)] = entry.sha256

    def forget(self, path: Path) -> None:
        self._load().pop(_identity(path), None)

    def save(self) -> None:
        """A full disk is no error: what frees it comes through here, and hashing again is all
        that is lost."""
        if self._path is None:
            return
        kept = list(self._load().items())[-_CACHE_ENTRIES:]
        try:
            durable.make_directory(self._path.parent)
            durable.replace_view(self._path, msgspec.json.encode(dict(kept)))
        except OSError as problem:
            if problem.errno not in disk.FULL:
                raise
            log.warning("what was proven is not remembered: %s", problem)

    def _load(self) -> dict[str, str]:
        if self._known is None:
            assert self._path is not None  # without one, __init__ has set `_known`
            try:
                self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
            except (OSError, msgspec.MsgspecError):  # a cache: what it knew is hashed again
                self._known = {}
        return self._known


def _identity(path: Path) -> str:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return "missing"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Proof:
    """Outcome of `verify`. `bytes` were read and hashed in `seconds`."""

    number: int
    name: str
    ok: bool
    problem: str
    files: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "name": self.name,
            "ok": self.ok,
            "problem": self.problem or None,
            "files": self.files,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "gb_per_s": round(self.bytes / self.seconds / 1e9, 3) if self.seconds else None,
        }


def prove(
    folder: Path,
    verified: Verified | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Manifest:
    """Hash every file (several at a time) and open every tensor of a committed folder.

    Args:
        verified: skip files known from it and teach it the others; None hashes everything.
        should_stop: asked every few MB.

    Raises:
        Corrupt: the first thing that does not match, in one sentence.
        GaveWay: `should_stop` said so; what was proven by then is remembered.
    """
    sealed = manifest.read(folder)
    for entry in sealed.files:
        checked_name(entry.name)
    small = [entry for entry in sealed.files if entry.bytes < WORTH_A_THREAD_BYTES]
    large = [entry for entry in sealed.files if entry.bytes >= WORTH_A_THREAD_BYTES]
    for entry in small:
        _prove_file(folder, entry, verified, should_stop)
    if large:
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            outcomes = [
                pool.submit(_prove_file, folder, entry, verified, should_stop) for entry in large
            ]
        for outcome in outcomes:
            outcome.result()
    return sealed


def _prove_file(
    folder: Path,
    entry: FileEntry,
    verified: Verified | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    path = folder / entry.name
    if verified is not None and verified.knows(path, entry):
        return
    try:
        if path.is_symlink():
            raise Corrupt(f"{folder.name}: {entry.name} is a link, not a file")
        verify_file(folder, entry, should_stop)
        if path.suffix == ".safetensors":
            open_tensors(path)
    except Corrupt:
        if verified is not None:
            verified.forget(path)
        raise
    if verified is not None:
        verified.learn(path, entry)


def open_tensors(path: Path) -> int:
    """Open every tensor of a safetensors file (layout, type, shape); no torch is needed.

    Returns:
        How many tensors there are.

    Raises:
        Corrupt: the header does not describe the file.
    """
    try:
        with safe_open(path, framework="numpy") as tensors:
            names = list(tensors.keys())
            for name in names:
                part: Any = tensors.get_slice(name)
                part.get_shape()
                part.get_dtype()
            return len(names)
    except FileNotFoundError:
        raise Corrupt(f"{path.parent.name}: {path.name} is missing") from None
    except SafetensorError as problem:
        raise Corrupt(f"{path.parent.name}: {path.name} holds no tensors: {problem}") from None


def prove_version(
    folder: Path,
    verified: Verified | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Manifest:
    """`prove` for a version: its record and, when it has one, its optimizer part too. One whose
    optimizer is let go of meanwhile is sound without it.

    Raises:
        Corrupt: the first thing that does not match.
        GaveWay: as `prove`.
    """
    record = read_version(folder)
    sealed = prove(folder, verified, should_stop)
    if record.manifest_sha256 != sealed.sha256:
        raise Corrupt(f"{folder.name}: its record belongs to another manifest")
    if has_optimizer(folder):
        try:
            prove(folder / OPTIMIZER_PART, verified, should_stop)
        except Corrupt:
            if has_optimizer(folder):
                raise
    return sealed


def has_optimizer(folder: Path) -> bool:
    try:
        return (folder / OPTIMIZER_PART / manifest.MANIFEST_NAME).is_file()
    except PermissionError:  # what nobody may look at is as good as none
        return False


# --- marks of damage found by a proof -----------------------------------------------------------


class _Damage(msgspec.Struct, frozen=True):
    problem: str
    at: str


def mark_damaged(layout: Layout, folder_name: str, problem: str) -> None:
    durable.make_directory(layout.damaged)
    mark = _Damage(problem, clock.now_iso())
    durable.replace(layout.damaged / f"{folder_name}.json", msgspec.json.encode(mark))


def unmark_damaged(layout: Layout, folder_name: str) -> None:
    path = layout.damaged / f"{folder_name}.json"
    if path.exists():
        durable.remove_file(path)


def known_damage(layout: Layout, folder_name: str) -> str:
    """What the last proof of this folder found wrong; empty when nothing.

    A mark that cannot be read is none: whoever trusts a folder proves it anyway.
    """
    try:
        data = (layout.damaged / f"{folder_name}.json").read_bytes()
        return msgspec.json.decode(data, type=_Damage).problem
    except (OSError, msgspec.MsgspecError):
        return ""
