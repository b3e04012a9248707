"""Names and places of everything kept: versions, emergency backups, marks, and the room's lock.

Invariant: whoever changes anything under `models/backups/`, or deletes a checkpoint, holds
`exclusive`, which also sweeps: nobody may stage there without it. Where the trainer's lock is
needed too, it is taken first.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import clock, durable, locks
from trainer_tui.safety.checkpoints import BAD_SUFFIX, CheckpointName, parse_name
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace

OPTIMIZER_PART = "optimizer"
THINNING_PREFIX = ".thinning-"  # not `.staging-`: the trainer sweeps those while we are at work
_VERSION = re.compile(r"v(\d{3,})_(\d{8})")
_BAD = re.compile(re.escape(BAD_SUFFIX) + r"\d*$")
_EMERGENCY = re.compile(r"e(\d{3,})_.+")
_LOOK_AGAIN_S = 0.05


def version_name(number: int, date: str) -> str:
    """`v007_20261124`; from 1000 on the number simply grows wider."""
    return f"v{number:03d}_{date}"


def version_number(name: str) -> int | None:
    found = _VERSION.fullmatch(name)
    return int(found[1]) if found else None


def emergency_number(name: str) -> int | None:
    found = _EMERGENCY.fullmatch(name)
    return int(found[1]) if found else None


def step_of(folder_name: str) -> int | None:
    """Global step that a checkpoint's name claims, for damaged ones (`….bad`, `….bad2`) too."""
    named = checkpoint_name(folder_name)
    return named.global_step if named else None


def checkpoint_name(folder_name: str) -> CheckpointName | None:
    return parse_name(_BAD.sub("", folder_name))


def is_marked_bad(folder_name: str) -> bool:
    """The trainer found it damaged and took it out of sight."""
    return _BAD.search(folder_name) is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths only, all below one workspace."""

    workspace: Workspace

    @property
    def root(self) -> Path:
        return self.workspace.models / "backups"

    @property
    def versions(self) -> Path:
        return self.workspace.versions

    @property
    def emergency(self) -> Path:
        return self.workspace.emergency

    @property
    def lock_file(self) -> Path:
        return self.root / ".lock"

    @property
    def version_counter(self) -> Path:
        return self.root / "next_version"

    @property
    def emergency_counter(self) -> Path:
        return self.root / "next_emergency"

    @property
    def branches(self) -> Path:
        return self.root / "lineages"

    @property
    def pins(self) -> Path:
        return self.root / "pinned"

    @property
    def damaged(self) -> Path:
        return self.root / "damaged"

    @property
    def verified_cache(self) -> Path:
        return self.root / "verified.json"


def committed_folders(parent: Path) -> list[Path]:
    """Directories of `parent` that are neither hidden nor links; in no particular order."""
    try:
        entries = list(parent.iterdir())
    except FileNotFoundError:
        return []
    return [
        entry
        for entry in entries
        if not entry.name.startswith(".") and not entry.is_symlink() and entry.is_dir()
    ]


@contextlib.contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the room's lock; what a killed holder left half-done is swept first."""
    durable.make_directory(layout.root)
    lock = locks.acquire(layout.lock_file, wait=True)
    assert lock is not None  # with wait=True it is only ever taken
    try:
        _sweep(layout)
        yield
    finally:
        lock.release()


def _sweep(layout: Layout) -> None:
    for parent in (layout.root, layout.versions, layout.emergency, layout.branches, layout.pins):
        durable.sweep_staging(parent)
    current = layout.workspace.current_model
    for entry in list(current.iterdir()) if current.is_dir() else ():
        if entry.name.startswith(THINNING_PREFIX):
            durable.remove_tree(entry)


@contextlib.contextmanager
def writer_held(workspace: Workspace, wait_s: float) -> Iterator[None]:
    """Hold the model's one-writer lock, so that no trainer can commit meanwhile.

    Raises:
        Refused: a trainer holds it and did not let go within `wait_s`.
    """
    durable.make_directory(workspace.current_model)
    deadline_s = clock.monotonic_s() + wait_s
    while (lock := locks.acquire(workspace.writer_lock)) is None:
        if clock.monotonic_s() >= deadline_s:
            raise Refused(
                "the trainer is still using the model, so nothing can be restored under it",
                "stop it first: trainer-tui stop --now",
            )
        time.sleep(_LOOK_AGAIN_S)
    try:
        durable.sweep_staging(workspace.current_model)  # nobody else stages there now
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def plain_words(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence; other OSErrors pass unchanged."""
    try:
        yield
    except OSError as problem:
        match problem.errno:
            case errno.ENOSPC | errno.EDQUOT:
                hint = "free some space (trainer-tui disk), then ask again"
                raise Refused(f"{doing}: the disk is full; nothing was changed", hint) from problem
            case errno.EROFS:
                raise Refused(f"{doing}: the disk is read-only; nothing was changed") from problem
            case _:
                raise


def allocate(counter: Path, above: int) -> int:
    """The next number, never given before. Call while holding `exclusive`.

    The counter is written before the number is used, so a crash costs a number and repeats none;
    `above` (the highest one seen) covers a lost counter.
    """
    number = max(read_counter(counter), above + 1)
    durable.replace(counter, str(number + 1).encode())
    return number


def read_counter(counter: Path) -> int:
    """The number to be given next; 1 when there is no usable counter."""
    try:
        return int(counter.read_text())
    except (FileNotFoundError, ValueError):
        return 1


def raise_counter(counter: Path, at_least: int) -> None:
    """Never lowers it. Call while holding `exclusive`."""
    if read_counter(counter) < at_least:
        durable.replace(counter, str(at_least).encode())
