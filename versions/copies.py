"""What stands at the second location: each copy, and what is wrong with it as far as a look tells.

Limits: a look compares names, sizes and seals: of the weights, the record and the optimizer.
Content is proven when a copy is made and when one is brought back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer_tui.safety.errors import Corrupt, is_damage
from trainer_tui.versions import check
from trainer_tui.versions.layout import OPTIMIZER_PART, committed_folders, version_number
from trainer_tui.versions.records import Version, read_version

PARTIAL_PREFIX = ".partial-"
Standing = Literal["the same", "another", ""]


@dataclass(frozen=True, slots=True)
class Copy:
    """`problem`: empty when it looks whole. `weights_only`: it has no optimizer, or no longer one
    with a manifest, which nobody can use."""

    number: int
    folder: Path
    problem: str
    manifest_sha256: str
    weights_only: bool
    bytes: int


def look_at_all(there: Path) -> dict[str, Copy]:
    """Every copy below our folder at the second location, by name, the damaged ones too."""
    found = {}
    for folder in committed_folders(there / "versions"):
        number = version_number(folder.name)
        if number is not None:
            found[folder.name] = _look_at(folder, number)
    return found


def _look_at(folder: Path, number: int) -> Copy:
    seen = check.look(folder)
    problem, sha256 = seen.problem, seen.sealed.sha256 if seen.sealed else ""
    entries = [*seen.sealed.files] if seen.sealed else []
    try:
        if read_version(folder).manifest_sha256 != sha256:
            problem = problem or f"{folder.name}: its record is of another manifest"
    except Corrupt as damage:
        problem = problem or damage.message
    except OSError as damage:
        if not is_damage(damage):
            raise
        problem = problem or f"{folder.name}: its record cannot be read: {damage.strerror}"
    weights_only = not check.has_optimizer(folder)
    if not weights_only:
        part = check.look(folder / OPTIMIZER_PART)
        problem = problem or part.problem
        entries += part.sealed.files if part.sealed else []
    size = sum(entry.bytes for entry in entries)
    return Copy(number, folder, problem, sha256, weights_only, size)


def standing(version: Version, copy: Copy | None) -> Standing:
    """Is the version copied? Empty: no, or not whole. An optimizer that only the copy has, because
    it was let go here, is no difference."""
    if copy is None or copy.problem:
        return ""
    mine = version.record.manifest_sha256 if version.record else ""
    if copy.manifest_sha256 != mine:
        return "another"
    return "" if copy.weights_only and not version.weights_only else "the same"


def partial_names(there: Path) -> list[str]:
    """Versions whose copying was begun and is not done."""
    versions = there / "versions"
    entries = versions.iterdir() if versions.is_dir() else ()
    names = [entry.name for entry in entries if entry.name.startswith(PARTIAL_PREFIX)]
    return sorted(name.removeprefix(PARTIAL_PREFIX) for name in names)
