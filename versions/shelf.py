"""What stands on the shelf: every version with its state, and which of them must stay there.

Looking is cheap (names, sizes, two small records each) and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trainer_tui.safety.errors import Corrupt, Unreadable
from trainer_tui.versions import best, check, emergency, line, records
from trainer_tui.versions.layout import (
    OPTIMIZER_PART,
    Layout,
    committed_folders,
    version_number,
)
from trainer_tui.versions.line import Position
from trainer_tui.versions.records import Version, VersionRecord

PROTECTED_NEWEST = 2


def position(layout: Layout) -> Position | None:
    """Where the newest checkpoint that looks whole stands; None when there is none."""
    found = emergency.standing(layout)
    return Position(found.sealed.lineage, found.sealed.global_step) if found else None


def list_versions(layout: Layout) -> list[Version]:
    """Every version, the newest number first, damaged ones with their state and problem."""
    found = []
    for folder in committed_folders(layout.versions):
        number = version_number(folder.name)
        if number is not None:
            version = examine(layout, number, folder)
            if version.state == "ok" or folder.exists():  # else it was deleted while we looked
                found.append(version)
    found.sort(key=lambda version: (version.number, version.name), reverse=True)
    here = position(layout)
    if here is None:
        return found
    spans = line.line_of(here, records.read_branches(layout))
    near = line.nearest(found, spans)
    return [
        replace(
            version,
            live=version.record is not None and line.is_on(spans, line.position_of(version)),
            current=near is not None and version.name == near.name,
        )
        for version in found
    ]


def examine(layout: Layout, number: int, folder: Path) -> Version:
    """One folder by itself; whether it is live needs the others (`list_versions`)."""
    seen = check.look(folder)
    state, problem = seen.state, seen.problem
    record: VersionRecord | None = None
    try:
        record = records.read_version(folder)
        if state == "ok" and seen.sealed and record.manifest_sha256 != seen.sealed.sha256:
            state, problem = "corrupt", f"{folder.name}: its record is of another manifest"
    except Unreadable as damage:
        if state == "ok":
            state, problem = "unreadable", damage.message
    except Corrupt as damage:
        if state == "ok":
            missing = not (folder / records.VERSION_RECORD).exists()
            state, problem = ("incomplete" if missing else "corrupt"), damage.message
    if state == "ok" and (found_before := check.known_damage(layout, folder.name)):
        state, problem = "corrupt", found_before
    part = None
    if check.has_optimizer(folder):
        inner = check.look(folder / OPTIMIZER_PART)
        part = inner.sealed
        if state == "ok" and inner.state != "ok" and check.has_optimizer(folder):
            state, problem = inner.state, f"{folder.name}: {inner.problem}"
    entries = [*(seen.sealed.files if seen.sealed else []), *(part.files if part else [])]
    return Version(
        number=number,
        name=folder.name,
        folder=folder,
        state=state,
        problem=problem,
        record=record,
        bytes=sum(entry.bytes for entry in entries),
        pinned=(layout.pins / folder.name).exists(),
        weights_only=part is None,
        live=False,
        current=False,
        figure=best.figure_of(seen.sealed) if seen.sealed else None,
    )


def newest_numbers(versions: Iterable[Version], count: int) -> list[int]:
    """The highest numbers of sound versions. Two folders of one number (a copy made by hand) are
    one version: they must not stand in for the one before them."""
    return sorted({v.number for v in versions if v.state == "ok"}, reverse=True)[:count]


def protected(version: Version, versions: Iterable[Version]) -> tuple[str, str] | None:
    """Why a version must stay, and what would change that; None when it may go.

    A damaged one protects nobody and is protected by a pin only.
    """
    if version.pinned:
        return "it is pinned", f"unpin it first: trainer-tui versions unpin {version.number}"
    if version.state != "ok":
        return None
    if version.current:
        return "the current model grew from it", ""
    if version.number in newest_numbers(versions, PROTECTED_NEWEST):
        return f"the {PROTECTED_NEWEST} newest versions always stay", ""
    return None
