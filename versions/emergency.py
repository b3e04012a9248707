"""Emergency backups: the newest checkpoint under a second name, linked before a destructive act.

A backup is the checkpoint's files and its sealed manifest unchanged, plus `ORIGIN.json`. It
costs no space while the checkpoint lives, and keeps it when retention lets the checkpoint go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import checkpoints, durable, manifest
from trainer_tui.safety.errors import NotFound
from trainer_tui.safety.manifest import LedgerEntry, Manifest
from trainer_tui.versions import bundle, check, trained, trash
from trainer_tui.versions.layout import Layout, allocate, committed_folders, emergency_number
from trainer_tui.versions.records import (
    ORIGIN_RECORD,
    Origin,
    State,
    TrainedFile,
    read_origin,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest checkpoint that looks whole: what training would go on from."""

    folder: Path
    sealed: Manifest


def standing(layout: Layout) -> Standing | None:
    """Names and sizes only; the trainer proves the hashes when it loads."""
    for folder in checkpoints.list_folders(layout.workspace.current_model):
        seen = check.look(folder)
        if seen.state == "ok" and seen.sealed and not check.known_damage(layout, folder.name):
            return Standing(folder, seen.sealed)
    return None


@dataclass(frozen=True, slots=True)
class Emergency:
    """One emergency backup as it stands on disk."""

    number: int
    name: str
    folder: Path
    state: State
    problem: str
    sealed: Manifest | None
    origin: Origin | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "name": self.name,
            "checkpoint": self.origin.checkpoint if self.origin else None,
            "why": self.origin.why if self.origin else None,
            "at": self.origin.at if self.origin else None,
            "global_step": self.sealed.global_step if self.sealed else None,
            "lineage": self.sealed.lineage if self.sealed else None,
            "state": self.state,
            "problem": self.problem or None,
        }


def list_all(layout: Layout) -> list[Emergency]:
    """Every emergency backup, the highest number first."""
    found = []
    for folder in committed_folders(layout.emergency):
        number = emergency_number(folder.name)
        if number is None:
            continue
        seen = check.look(folder)
        damage = seen.problem or check.known_damage(layout, folder.name)
        state: State = "corrupt" if seen.state == "ok" and damage else seen.state
        origin = read_origin(folder)
        if state != "ok" and not folder.exists():
            continue  # it went while we looked
        found.append(Emergency(number, folder.name, folder, state, damage, seen.sealed, origin))
    return sorted(found, key=lambda entry: entry.number, reverse=True)


def get(layout: Layout, number: int) -> Emergency:
    """Raises NotFound."""
    for entry in list_all(layout):
        if entry.number == number:
            return entry
    raise NotFound(f"there is no emergency backup {number}")


def show(layout: Layout, number: int) -> dict[str, Any]:
    """One of them, with the files that going back to it takes out of the model, or with why they
    are not known. Raises NotFound."""
    found, here = get(layout, number), standing(layout)
    now, then = here.sealed.ledger if here else None, found.sealed.ledger if found.sealed else None
    lost, problem = tuple[LedgerEntry, ...](), found.problem or None
    if found.sealed:
        lost, damage = trained.lost(layout.workspace.ledger, now, then)
        problem = damage or problem
    since = [TrainedFile.of(entry).as_dict() for entry in lost]
    return {**found.as_dict(), "files_since": since, "files_since_problem": problem}


def lost_too(layout: Layout, number: int, unsaved: Mapping[int, str]) -> list[int]:
    """As `trained.lost_too`, for going back to one of them. Raises NotFound."""
    found, here = get(layout, number), standing(layout)
    if found.sealed is None:
        return []
    head = here.sealed.ledger if here else None
    return trained.lost_too(layout.workspace.ledger, head, found.sealed.ledger, unsaved)


def back_up(layout: Layout, found: Standing, why: str, now: str) -> str:
    """Link a checkpoint into a new emergency backup. Call while holding `exclusive`.

    Returns:
        Its name.

    Raises:
        OSError: nothing was kept, the checkpoint is as it was.
    """
    thrown = (emergency_number(entry.note.name) or 0 for entry in trash.contents(layout))
    highest = max((*thrown, *(entry.number for entry in list_all(layout))), default=0)
    number = allocate(_counter(layout), highest)
    target = layout.emergency / f"e{number:03d}_{found.folder.name}"
    origin = Origin(number=number, checkpoint=found.folder.name, why=why, at=now)
    with bundle.staged(target) as staging:
        bundle.share_files(found.folder, found.sealed.files, staging)
        durable.share(found.folder / manifest.MANIFEST_NAME, staging / manifest.MANIFEST_NAME)
        bundle.commit(staging, target, {ORIGIN_RECORD: msgspec.json.encode(origin)})
    return target.name


def _counter(layout: Layout) -> Path:
    durable.make_directory(layout.root)
    return layout.emergency_counter
