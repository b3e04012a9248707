"""Going back: an old state is committed again, as a new checkpoint of a new lineage.

Order of operations, each leaving a sound current model behind when the process dies after it:
prove the source -> link an emergency backup of what is there -> write down the branch -> commit
the new checkpoint by one rename. Nothing is removed, so it is the old or the new, never neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import checkpoints, manifest, proofs
from trainer_tui.safety.errors import Corrupt, Unreadable
from trainer_tui.safety.manifest import Manifest
from trainer_tui.versions import bundle, check, emergency, trained
from trainer_tui.versions.check import Verified
from trainer_tui.versions.emergency import Standing
from trainer_tui.versions.layout import OPTIMIZER_PART, Layout, committed_folders, step_of
from trainer_tui.versions.records import Branch, TrainedFile, Version, read_branches, write_branch


@dataclass(frozen=True, slots=True)
class Source:
    """What is committed again. `optimizer`: the folder of its optimizer part, if that comes too."""

    name: str
    folder: Path
    optimizer: Path | None
    number: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `files_since`: trained after the source, so no longer in the model;
    a person decides whether they go back to the queue. `left`: the newest checkpoint until now."""

    source: str
    number: int | None
    checkpoint: str
    folder: Path
    global_step: int
    lineage: int
    left: str
    emergency: str
    weights_only: bool
    files_since: tuple[TrainedFile, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "number": self.number,
            "checkpoint": self.checkpoint,
            "global_step": self.global_step,
            "lineage": self.lineage,
            "left": self.left or None,
            "emergency": self.emergency or None,
            "weights_only": self.weights_only,
            "files_since": [file.as_dict() for file in self.files_since],
            "notes": list(self.notes),
        }


def commit_again(
    layout: Layout,
    source: Source,
    versions: Iterable[Version],
    now: str,
    *,
    why: str,
    recent: Verified | None = None,
) -> Restored:
    """Commit `source` as the newest checkpoint. Call while holding the writer's lock, then ours.

    Args:
        recent: files proven a moment ago, which need no second reading.

    Raises:
        Corrupt: the source is not what it was; nothing was changed.
        OSError: nothing was committed; an emergency backup may have been made.
    """
    sealed, optimizer = _prove(layout, source, recent)
    before = emergency.standing(layout)
    files_since, notes = _files_since(layout, sealed, before)
    step, lineage = _next_position(layout, versions)
    saved = emergency.back_up(layout, before, why, now) if before else ""
    target = layout.workspace.current_model / f"checkpoint-{step}"
    write_branch(
        layout,
        Branch(
            lineage=lineage,
            from_lineage=sealed.lineage,
            from_step=sealed.global_step,
            global_step=step,
            source=source.name,
            checkpoint=target.name,
            left=before.folder.name if before else "",
            emergency=saved,
            reason=source.reason,
            at=now,
        ),
    )
    renewed = _renewed(sealed, optimizer, source, step, lineage, now)
    with bundle.staged(target) as staging:
        bundle.share_files(source.folder, _own(sealed, optimizer), staging)
        if source.optimizer and optimizer:
            bundle.share_files(source.optimizer, optimizer.files, staging)
        checkpoints.commit(staging, target, manifest.seal(renewed))
    with contextlib.suppress(OSError):  # a hint; the trainer hashes it all when there is none
        proofs.note(target, manifest.read(target))
    if renewed.weights_only:
        notes.append("the optimizer was not kept: the learning rate warms up again")
    return Restored(
        source=source.name,
        number=source.number,
        checkpoint=target.name,
        folder=target,
        global_step=step,
        lineage=lineage,
        left=before.folder.name if before else "",
        emergency=saved,
        weights_only=renewed.weights_only,
        files_since=files_since,
        notes=tuple(notes),
    )


def _prove(
    layout: Layout, source: Source, recent: Verified | None
) -> tuple[Manifest, Manifest | None]:
    try:
        sealed = check.prove(source.folder, recent)
        optimizer = check.prove(source.optimizer, recent) if source.optimizer else None
    except Corrupt as problem:
        if not isinstance(problem, Unreadable):
            check.mark_damaged(layout, source.name, problem.message)
        hint = "training is as it was; choose another version: trainer-tui versions list"
        raise Corrupt(f"{source.name} cannot be restored: {problem.message}", hint) from None
    if source.optimizer or not check.has_optimizer(source.folder):  # all of it was proven
        check.unmark_damaged(layout, source.name)
    return sealed, optimizer


def _own(sealed: Manifest, optimizer: Manifest | None) -> list[manifest.FileEntry]:
    """Entries of the source folder itself, none of them twice."""
    apart = {entry.name for entry in optimizer.files} if optimizer else set()
    return [entry for entry in sealed.files if entry.name not in apart]


def _files_since(
    layout: Layout, sealed: Manifest, before: Standing | None
) -> tuple[tuple[TrainedFile, ...], list[str]]:
    """What was trained since the source; a ledger damaged on the newer side is only a note."""
    ledger = layout.workspace.ledger
    if sealed.ledger is not None:
        try:
            manifest.read_segment(ledger, sealed.ledger)
        except Corrupt as problem:
            hint = "without it, files would be trained twice; bring the ledger back from a backup"
            raise Corrupt(f"it cannot be restored: {problem.message}", hint) from None
    if before is None:
        return (), []
    since, unknown = trained.lost(ledger, before.sealed.ledger, sealed.ledger)
    notes = [f"which files were trained since is not known: {unknown}"] if unknown else []
    return tuple(TrainedFile.of(entry) for entry in since), notes


def _next_position(layout: Layout, versions: Iterable[Version]) -> tuple[int, int]:
    """A global step above everything ever committed, and a lineage never used."""
    steps, lineages = [0], [0]
    for folder in committed_folders(layout.workspace.current_model):
        step = step_of(folder.name)
        if step is not None:
            steps.append(step)  # a damaged one counts too: its step was lived through
            seen = check.look(folder)
            lineages.append(seen.sealed.lineage if seen.sealed else 0)
    for version in versions:
        steps.append(version.global_step)
        lineages.append(version.lineage)
    for entry in emergency.list_all(layout):
        if entry.sealed:
            steps.append(entry.sealed.global_step)
            lineages.append(entry.sealed.lineage)
    branches = read_branches(layout)
    steps += [branch.global_step for branch in branches.values() if _happened(branch, lineages)]
    return max(steps) + 1, max([*lineages, *branches]) + 1


def _happened(branch: Branch, lineages: list[int]) -> bool:
    """A branch written down just before a crash may never have been committed."""
    return branch.lineage in lineages


def _renewed(
    sealed: Manifest,
    optimizer: Manifest | None,
    source: Source,
    step: int,
    lineage: int,
    now: str,
) -> Manifest:
    moved = step - sealed.global_step
    weights_only = sealed.weights_only and optimizer is None
    own = _own(sealed, optimizer)
    return msgspec.structs.replace(
        sealed,
        created_at=now,
        global_step=step,
        lineage=lineage,
        parent=source.name,
        reason=source.reason,
        # The schedule goes on where the source stood in it, whatever the step is called now.
        schedule_origin=sealed.schedule_origin + moved,
        warmup_origin=step if weights_only else (optimizer or sealed).warmup_origin + moved,
        weights_only=weights_only,
        files=own + (optimizer.files if optimizer else []),
        extra={**_moved(sealed.extra, moved), "restored_from": source.name},
        sha256="",
    )


def _moved(extra: dict[str, Any], steps: int) -> dict[str, Any]:
    """What is noted with a global step, which is called differently on the new lineage. Step 0 is
    called so on every one."""
    moved = dict(extra)
    for name in ("cool_down", "measured"):
        match extra.get(name):
            case [int(at), *rest] if at or name == "cool_down":
                moved[name] = [at + steps, *rest]
    return moved


def optimizer_part(folder: Path) -> Path | None:
    """The optimizer part of a version, when it still has one."""
    return folder / OPTIMIZER_PART if check.has_optimizer(folder) else None
