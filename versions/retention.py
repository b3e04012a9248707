"""What is kept and what goes: a decision on values alone.

Invariant: damaged folders are never counted as kept, and no clock has a say: newest is the
highest step or number, and days are counted as the distinct days on which versions were made.
Doing it is `keeping`'s part, which proves what is kept before anything goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer_tui.safety.checkpoints import CheckpointName
from trainer_tui.safety.config import Retention
from trainer_tui.versions import best
from trainer_tui.versions.best import Figure
from trainer_tui.versions.emergency import Emergency
from trainer_tui.versions.records import State, Version
from trainer_tui.versions.shelf import PROTECTED_NEWEST, newest_numbers

Action = Literal["trash", "thin"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder as retention sees it. `figure`: of the fixed set, if known."""

    folder: Path
    name: CheckpointName
    state: State
    figure: Figure | None
    pinned: bool
    weights_only: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """`trash`: the whole folder goes. `thin`: its optimizer goes, the weights stay."""

    path: Path
    why: str
    action: Action = "trash"

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.path.name, "why": self.why, "action": self.action}


@dataclass(frozen=True, slots=True)
class Plan:
    """`keep` says for each folder that is counted on why it stays; those must prove sound."""

    go: tuple[Decision, ...]
    keep: dict[Path, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "go": [decision.as_dict() for decision in self.go],
            "keep": [{"name": path.name, "why": why} for path, why in self.keep.items()],
        }


def what_goes(
    checkpoints: Sequence[Checkpoint],
    versions: Sequence[Version],
    policy: Retention,
    emergencies: Sequence[Emergency] = (),
) -> list[Decision]:
    """Everything beyond the policy. Pure."""
    return list(plan(checkpoints, versions, policy, emergencies).go)


def plan(
    checkpoints: Sequence[Checkpoint],
    versions: Sequence[Version],
    policy: Retention,
    emergencies: Sequence[Emergency] = (),
) -> Plan:
    """`what_goes`, and why the rest stays. Pure."""
    parts = (
        _plan_checkpoints(checkpoints, policy.checkpoints),
        _plan_versions(versions, policy),
        _plan_emergencies(emergencies, policy.emergency_backups),
    )
    keep: dict[Path, str] = {}
    for part in parts:
        keep |= part.keep
    return Plan(tuple(decision for part in parts for decision in part.go), keep)


def _plan_checkpoints(checkpoints: Sequence[Checkpoint], newest: int) -> Plan:
    sound = _sound_checkpoints(checkpoints)
    keep: dict[Path, str] = {}
    for checkpoint in sound[:newest]:
        keep[checkpoint.folder] = f"one of the {newest} newest checkpoints"
    for checkpoint in _best(sound):
        keep.setdefault(checkpoint.folder, "the best on its fixed validation set")
    for checkpoint in checkpoints:
        if checkpoint.pinned:
            keep.setdefault(checkpoint.folder, "pinned")
    # Damaged ones stay as evidence until enough sound ones are newer.
    limit = sound[newest - 1].name if len(sound) >= newest else None
    go = []
    for checkpoint in sorted(checkpoints, key=lambda found: found.name):
        if checkpoint.folder in keep or checkpoint.state == "unreadable":
            continue
        if checkpoint.state != "ok":
            if limit is not None and checkpoint.name < limit:
                go.append(Decision(checkpoint.folder, f"{checkpoint.state}, and newer ones verify"))
        elif checkpoint in sound:
            go.append(Decision(checkpoint.folder, f"{newest} newer checkpoints are kept"))
        else:
            go.append(Decision(checkpoint.folder, "a thinner commit of the same step stands in"))
    return Plan(tuple(go), keep)


def _sound_checkpoints(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The sound ones, newest first; of several commits of one step the last."""
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in sorted(checkpoints, key=lambda found: found.name):
        if checkpoint.state == "ok":
            by_step[checkpoint.name.global_step] = checkpoint
    return sorted(by_step.values(), key=lambda found: found.name, reverse=True)


def _best(newest_first: Sequence[Checkpoint]) -> list[Checkpoint]:
    return best.leaders(
        newest_first, lambda found: found.figure, lambda found: found.name.global_step, 1
    )


def best_versions(versions: Iterable[Version], count: int) -> list[Version]:
    """The sound ones with the lowest loss on the fixed set, best first (see `best.leaders`)."""
    by_number = {version.number: version for version in versions if version.state == "ok"}
    sound = sorted(by_number.values(), key=lambda version: version.number, reverse=True)
    return best.leaders(
        sound, lambda version: version.figure, lambda version: version.global_step, count
    )


def _plan_versions(versions: Sequence[Version], policy: Retention) -> Plan:
    sound = sorted(
        (version for version in versions if version.state == "ok"),
        key=lambda version: version.number,
        reverse=True,
    )
    newest = max(policy.versions, PROTECTED_NEWEST)
    keep: dict[Path, str] = {}
    numbers = newest_numbers(sound, newest)
    for version in sound:
        if version.number in numbers:
            keep[version.folder] = f"one of the {newest} newest versions"
    for version in best_versions(sound, policy.best_versions):
        keep.setdefault(version.folder, "one of the best on its fixed validation set")
    for version in _last_of_each_day(sound, policy.daily_days):
        keep.setdefault(version.folder, "the last of its day")
    for version in versions:
        if version.pinned:
            keep[version.folder] = "pinned"
        elif version.current:
            keep.setdefault(version.folder, "the current model grew from it")
    limit = numbers[-1] if len(numbers) == newest else None
    go = []
    for version in sorted(versions, key=lambda found: found.number):
        if version.folder in keep or version.state == "unreadable":
            continue
        if version.state == "ok":
            go.append(Decision(version.folder, f"{newest} newer versions are kept"))
        elif limit is not None and version.number < limit:
            go.append(Decision(version.folder, f"{version.state}, and newer ones verify"))
    full = [version for version in sound if not version.weights_only and version.folder in keep]
    whole = newest_numbers(full, policy.versions_with_optimizer)
    for version in full:
        if version.number not in whole and not version.pinned:
            why = f"only the {policy.versions_with_optimizer} newest keep their optimizer"
            go.append(Decision(version.folder, why, "thin"))
    return Plan(tuple(go), keep)


def _last_of_each_day(newest_first: Iterable[Version], days: int) -> list[Version]:
    last: dict[str, Version] = {}
    for version in newest_first:
        last.setdefault(version.created_at[:10], version)
    return list(last.values())[:days]


def _plan_emergencies(emergencies: Sequence[Emergency], newest: int) -> Plan:
    ordered = sorted(emergencies, key=lambda entry: entry.number, reverse=True)
    sound = [entry for entry in ordered if entry.state == "ok"]
    keep = {entry.folder: f"one of the {newest} newest emergency backups" for entry in sound}
    keep = dict(list(keep.items())[:newest])
    limit = sound[newest - 1].number if len(sound) >= newest else None
    go = [
        Decision(entry.folder, f"{newest} newer emergency backups are kept")
        for entry in reversed(ordered)
        if limit is not None and entry.number < limit and entry.state != "unreadable"
    ]
    return Plan(tuple(go), keep)


def for_space(
    checkpoints: Sequence[Checkpoint],
    versions: Sequence[Version],
    emergencies: Sequence[Emergency] = (),
) -> Plan:
    """What may go when the disk is full, the cheapest loss first; the caller stops when it can.

    Optimizers of old checkpoints, then old checkpoints, emergency backups but the last, the
    versions' optimizers, old versions. The two newest of each, the current, the best and the
    pinned stay. Pure.
    """
    sound = _sound_checkpoints(checkpoints)
    keep = {checkpoint.folder: "one of the two newest checkpoints" for checkpoint in sound[:2]}
    for checkpoint in _best(sound):
        keep.setdefault(checkpoint.folder, "the best on its fixed validation set")
    for checkpoint in checkpoints:
        if checkpoint.pinned:
            keep[checkpoint.folder] = "pinned"
    oldest_first = sorted(checkpoints, key=lambda found: found.name)
    newest_two = {checkpoint.folder for checkpoint in sound[:2]}
    go = [
        Decision(checkpoint.folder, "optimizer of an old checkpoint", "thin")
        for checkpoint in oldest_first
        if checkpoint in sound
        and not (checkpoint.weights_only or checkpoint.pinned or checkpoint.folder in newest_two)
    ]
    go += [
        Decision(checkpoint.folder, "not one of the two newest checkpoints")
        for checkpoint in oldest_first
        if checkpoint.folder not in keep and checkpoint.state != "unreadable" and len(sound) > 1
    ]
    backups = sorted((e for e in emergencies if e.state == "ok"), key=lambda entry: entry.number)
    go += [Decision(entry.folder, "not the last emergency backup") for entry in backups[:-1]]
    keep |= {entry.folder: "the last emergency backup" for entry in backups[-1:]}
    kept, leaving = _versions_for_space(versions)
    return Plan((*go, *leaving), keep | kept)


def _versions_for_space(versions: Sequence[Version]) -> tuple[dict[Path, str], list[Decision]]:
    lenient = Retention(
        versions=PROTECTED_NEWEST, best_versions=1, daily_days=0, versions_with_optimizer=0
    )
    strict = _plan_versions(versions, lenient)
    thin = [
        Decision(version.folder, "optimizer of a version", "thin")
        for version in sorted(versions, key=lambda found: found.number)
        if not (version.weights_only or version.pinned) and version.state == "ok"
    ]
    trash = [decision for decision in strict.go if decision.action == "trash"]
    return strict.keep, thin + trash
