"""What trained files took and did: minutes, tokens, change of the loss on the fixed set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import LedgerHead
from trainer_tui.versions import trained
from trainer_tui.versions.records import TrainedFile, Version


@dataclass(frozen=True, slots=True)
class Impact:
    """A sum over files. `val_change` adds up the measured ones (below 0 is better); `measured`
    says how many those are."""

    files: int
    rows: int
    tokens: int
    minutes: float
    val_change: float | None
    measured: int

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def total(files: Iterable[TrainedFile]) -> Impact:
    """The sum over trained files."""
    listed = list(files)
    changes = [file.val_change for file in listed if file.val_change is not None]
    return Impact(
        files=len(listed),
        rows=sum(file.rows for file in listed),
        tokens=sum(file.tokens for file in listed),
        minutes=round(sum(file.seconds for file in listed) / 60, 2),
        val_change=sum(changes) if changes else None,
        measured=len(changes),
    )


def since_parent(version: Version, versions: Iterable[Version]) -> float | None:
    """How the fixed loss changed from the parent to this version, all files since together; None
    unless both were measured at their very steps, on one set."""
    record, figure = version.record, version.figure
    if record is None or figure is None or figure.step != version.global_step:
        return None
    for other in versions:
        before = other.figure
        if other.name == record.parent and before and before.step == other.global_step:
            return figure.loss - before.loss if before.set_id == figure.set_id else None
    return None


def between(ledger: Path, older: Version | None, newer: Version) -> list[TrainedFile]:
    """Files that `newer` has learnt and `older` (None: the base model) has not, newest first.

    Raises:
        Corrupt: a record or the ledger cannot be read.
    """
    _, files = trained.parted(ledger, _head(older) if older else None, _head(newer))
    return [TrainedFile.of(entry) for entry in files]


def _head(version: Version) -> LedgerHead | None:
    if version.record is None:
        raise Corrupt(f"{version.name} cannot be read: {version.problem}")
    return version.record.ledger


def strongest(files: Iterable[TrainedFile]) -> list[TrainedFile]:
    """The measured ones, those that helped most first."""
    measured = [file for file in files if file.val_change is not None]
    return sorted(measured, key=lambda file: (file.val_change or 0.0, file.job_id))
