"""What lies between two versions: files trained, validation, settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_tui.safety import manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.versions import best, impact, trained
from trainer_tui.versions.records import TrainedFile, Version, VersionRecord


@dataclass(frozen=True, slots=True)
class Change:
    """A figure or setting in both; None where one of them does not have it. `comparable`: the two
    are of the same rows, so that their difference means something."""

    first: Any
    second: Any
    comparable: bool = True

    @property
    def by(self) -> float | None:
        if not self.comparable:
            return None
        if isinstance(self.first, int | float) and isinstance(self.second, int | float):
            return self.second - self.first
        return None

    def as_dict(self) -> dict[str, Any]:
        change = {"first": self.first, "second": self.second, "by": self.by}
        return change if self.comparable else {**change, "comparable": False}


@dataclass(frozen=True, slots=True)
class Difference:
    """`only_first`, `only_second`: files that one has learnt and the other has not, newest first.
    `settings`: what changed of hashes and (where both say) single configuration keys."""

    first: str
    second: str
    steps: int
    tokens: int
    only_first: tuple[TrainedFile, ...]
    only_second: tuple[TrainedFile, ...]
    validation: dict[str, Change]
    settings: dict[str, Change]

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "steps": self.steps,
            "tokens": self.tokens,
            "only_first": [file.as_dict() for file in self.only_first],
            "only_second": [file.as_dict() for file in self.only_second],
            "impact_first": impact.total(self.only_first).as_dict(),
            "impact_second": impact.total(self.only_second).as_dict(),
            "validation": {name: change.as_dict() for name, change in self.validation.items()},
            "settings": {name: change.as_dict() for name, change in self.settings.items()},
        }


_SETTINGS = ("config_hash", "template_hash", "tokenizer_hash", "base_model")


def compare(ledger: Path, first: Version, second: Version) -> Difference:
    """Compare two versions, on one line or on different ones.

    Raises:
        Corrupt: a record or the ledger cannot be read.
    """
    one, two = _record(first), _record(second)
    only_one, only_two = trained.parted(ledger, one.ledger, two.ledger)
    return Difference(
        first=one.name,
        second=two.name,
        steps=two.global_step - one.global_step,
        tokens=two.tokens - one.tokens,
        only_first=tuple(TrainedFile.of(entry) for entry in only_one),
        only_second=tuple(TrainedFile.of(entry) for entry in only_two),
        validation=_validation(first, second),
        settings=_settings(first, one, second, two),
    )


def _record(version: Version) -> VersionRecord:
    if version.record is None:
        raise Corrupt(f"{version.name} cannot be compared: {version.problem}")
    return version.record


def _validation(first: Version, second: Version) -> dict[str, Change]:
    """The fixed set compares with itself alone; the other series are of one file's own rows."""
    names = sorted(first.validation.keys() | second.validation.keys())
    known = first.figure is not None and second.figure is not None
    same = not known or first.figure.set_id == second.figure.set_id  # type: ignore[union-attr]
    return {
        name: Change(
            first.validation.get(name), second.validation.get(name), name == best.FIXED and same
        )
        for name in names
    }


def _settings(
    first: Version, one: VersionRecord, second: Version, two: VersionRecord
) -> dict[str, Change]:
    changed = {
        name: Change(getattr(one, name), getattr(two, name))
        for name in _SETTINGS
        if getattr(one, name) != getattr(two, name)
    }
    before, after = _configuration(first.folder), _configuration(second.folder)
    for key in sorted(before.keys() | after.keys()) if before and after else ():
        if before.get(key) != after.get(key):
            changed[key] = Change(before.get(key), after.get(key))
    return changed


def _configuration(folder: Path) -> dict[str, Any]:
    """`extra["config"]` of a manifest, flattened to `section.key`; empty when it has none."""
    try:
        values = manifest.read(folder).extra.get("config")
    except Corrupt:
        return {}
    return _flat(values) if isinstance(values, dict) else {}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
