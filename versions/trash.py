"""The only way out: a committed folder is renamed into the trash, and removed from there.

Invariant: a note beside each entry says what it was, where it stood and until when it can come
back; the note is durable before the rename, so nothing lies in the trash unexplained. An entry
is removed only after its note's time, or when space is short. A clock that went back keeps
entries longer, never shorter. What nobody can bring back leaves under a staging name and needs
no note, so that it can go when there is not a byte left for one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.errors import NotFound, Refused, is_lack
from trainer_tui.versions.layout import Layout, committed_folders

LOCAL_TRASH = ".trash"  # beside the things, used when a rename cannot reach state/
_ROOM = "versions"
T = TypeVar("T")


class Note(msgspec.Struct, frozen=True):
    """`keep_until`: nothing but a shortage of space removes it before; empty (older notes): at
    once."""

    name: str
    origin: str
    why: str
    deleted_at: str
    keep_until: str


@dataclass(frozen=True, slots=True)
class Trashed:
    folder: Path
    note: Note

    def origin(self, layout: Layout) -> Path:
        """Where it stood."""
        return Path(os.path.normpath(layout.workspace.root / self.note.origin))

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.note.name,
            "why": self.note.why,
            "deleted_at": self.note.deleted_at,
            "keep_until": self.note.keep_until or None,
        }


def _homes(layout: Layout) -> tuple[Path, ...]:
    return layout.versions, layout.emergency, layout.workspace.current_model


def _places(layout: Layout) -> list[Path]:
    local = [home / LOCAL_TRASH for home in _homes(layout)]
    return [layout.workspace.trash / _ROOM, *local, *_inside_versions(layout)]


def _inside_versions(layout: Layout) -> list[Path]:
    """Where optimizers went at first when state/ was on another filesystem: still collected."""
    found = []
    for folder in committed_folders(layout.versions):
        with contextlib.suppress(PermissionError):  # of another user: nothing of ours lies there
            if (folder / LOCAL_TRASH).is_dir():
                found.append(folder / LOCAL_TRASH)
    return found


def throw(layout: Layout, folder: Path, why: str, now: str, keep_days: int) -> Trashed:
    """Take a folder out of use by one rename, to be brought back within `keep_days`."""
    until = (at(now) + timedelta(days=keep_days)).isoformat()
    # Relative, so that a workspace that was moved still knows where it stood.
    origin = os.path.relpath(folder, layout.workspace.root)
    note = Note(folder.name, origin, why, now, until)
    return _placed(layout, folder, lambda place: _put(folder, place, note))


def _placed(layout: Layout, folder: Path, put: Callable[[Path], T]) -> T:
    """Put a folder where a rename reaches: into `state/`, else beside what it belongs to."""
    [home] = (home for home in _homes(layout) if folder.is_relative_to(home))
    durable.make_directory(layout.workspace.trash)
    if layout.workspace.trash.stat().st_dev == folder.stat().st_dev:
        try:
            return put(layout.workspace.trash / _ROOM)
        except OSError as problem:  # two mounts of one filesystem: only the rename can tell
            if problem.errno != errno.EXDEV:
                raise
    return put(home / LOCAL_TRASH)


def _put(folder: Path, place: Path, note: Note) -> Trashed:
    durable.make_directory(place)
    target = place / f"{folder.name}--{secrets.token_hex(4)}"
    durable.replace(_note_path(target), msgspec.json.encode(note))
    try:
        durable.rename(folder, target)
    except OSError:
        if folder.exists():  # then it did not go, and its note would explain nothing
            durable.remove_file(_note_path(target))
        raise
    return Trashed(target, note)


def discard(layout: Layout, folder: Path) -> None:
    """Take a folder out of use for good, by one rename; the next `purge` removes it.

    Needs no block of the disk but, the first time, for the place itself.
    """

    def put(place: Path) -> None:
        durable.make_directory(place)
        durable.rename(folder, durable.staging_name(place / folder.name))

    _placed(layout, folder, put)


def half_gone(layout: Layout) -> list[Path]:
    """What was discarded and not removed yet: the process died, or is just about to."""
    places = [place for place in _places(layout) if place.is_dir()]
    return [path for place in places for path in place.glob(f"{durable.STAGING_PREFIX}*")]


def _note_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.note.json")


def contents(layout: Layout) -> list[Trashed]:
    """Everything in the trash, the latest deleted first. Folders without a note are left out."""
    found = []
    for place in _places(layout):
        for folder in committed_folders(place):
            note = _read_note(folder)
            if note is not None:
                found.append(Trashed(folder, note))
    return sorted(found, key=lambda entry: (entry.note.deleted_at, entry.folder), reverse=True)


def _read_note(folder: Path) -> Note | None:
    try:
        return msgspec.json.decode(_note_path(folder).read_bytes(), type=Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    except OSError as problem:
        if is_lack(problem):
            raise
        return None  # it stays there, unexplained, until its note can be read


def bring_back(layout: Layout, name: str) -> Path:
    """Undo the latest deletion of a folder of this name.

    Raises:
        NotFound: it is not in the trash (any more).
        Refused: its place is taken.
    """
    for entry in contents(layout):
        if entry.note.name == name:
            origin = entry.origin(layout)
            if origin.exists():
                raise Refused(f"{name} cannot come back: its place is taken")
            durable.rename(entry.folder, origin)
            durable.remove_file(_note_path(entry.folder))
            return origin
    raise NotFound(f"{name} is not in the trash", "deleted versions stay there for some days only")


def purge(
    layout: Layout,
    now: str,
    *,
    everything: bool = False,
    here: Callable[[Path], bool] = lambda folder: True,
) -> list[Trashed]:
    """Remove what has had its time (`everything`: what lies `here` and has not, too) and notes of
    nothing."""
    gone = []
    for entry in contents(layout):
        early = everything and here(entry.folder)
        if early or not entry.note.keep_until or at(entry.note.keep_until) <= at(now):
            doomed = durable.staging_name(entry.folder)
            durable.rename(entry.folder, doomed)  # so that half a folder can never come back
            durable.remove_tree(doomed)
            durable.remove_file(_note_path(entry.folder))
            gone.append(entry)
    for place in _places(layout):
        for note in place.glob("*.note.json") if place.is_dir() else ():
            if not note.with_name(note.name.removesuffix(".note.json")).exists():
                durable.remove_file(note)
        durable.sweep_staging(place)
    for place in _inside_versions(layout):
        if not any(place.iterdir()):
            durable.remove_tree(place)
    return gone


def at(stamp: str) -> datetime:
    """A stamp of `clock.now_iso` as a time; one that cannot be read counts as the far past."""
    try:
        found = datetime.fromisoformat(stamp)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
