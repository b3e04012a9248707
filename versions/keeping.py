"""Doing what retention decided. Every deletion of anything committed comes through here.

Invariant: before anything goes, everything that is counted as kept has been proven (hashes and
tensors); one that fails is marked and the decision is made anew. A folder leaves by a rename
into the trash; versions can come back for some days, the rest is removed at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import checkpoints, clock, durable, hashing, manifest
from trainer_tui.safety.config import Config
from trainer_tui.safety.disk import exclusive_bytes
from trainer_tui.safety.errors import Corrupt, Refused, Unreadable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import best, bundle, check, emergency, retention, shelf, trash
from trainer_tui.versions.best import Figure
from trainer_tui.versions.check import Verified
from trainer_tui.versions.emergency import Emergency
from trainer_tui.versions.layout import (
    OPTIMIZER_PART,
    THINNING_PREFIX,
    Layout,
    checkpoint_name,
    committed_folders,
    exclusive,
    is_marked_bad,
    plain_words,
)
from trainer_tui.versions.records import Version
from trainer_tui.versions.retention import Checkpoint, Decision, Plan

log = logging.getLogger("versions")
ROUNDS = 100  # each round proves or marks at least one more folder


@dataclass(frozen=True, slots=True)
class Done:
    """One thing that went. `freed_bytes`: what that gave back to the disk (links give nothing)."""

    path: Path
    why: str
    action: str
    freed_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.path.name,
            "path": str(self.path),
            "why": self.why,
            "action": self.action,
            "freed_bytes": self.freed_bytes,
        }


@dataclass(frozen=True, slots=True)
class Survey:
    checkpoints: list[Checkpoint]
    versions: list[Version]
    emergencies: list[Emergency]


def survey(layout: Layout) -> Survey:
    """Everything committed, by names and sizes."""
    found = []
    for folder in committed_folders(layout.workspace.current_model):
        name = checkpoint_name(folder.name)
        if name is None:
            continue
        seen = check.look(folder)
        bad = is_marked_bad(folder.name) or bool(check.known_damage(layout, folder.name))
        sealed = seen.sealed
        found.append(
            Checkpoint(
                folder=folder,
                name=name,
                state="corrupt" if bad and seen.state == "ok" else seen.state,
                figure=best.figure_of(sealed) if sealed else None,
                pinned=(layout.pins / folder.name).exists(),
                weights_only=sealed.weights_only if sealed else True,
            )
        )
    return Survey(found, shelf.list_versions(layout), emergency.list_all(layout))


def best_known(workspace: Workspace) -> Figure | None:
    """The best figure of all that is kept, on the set that the current model was measured with."""
    found = survey(Layout(workspace))
    newest_first = sorted(found.checkpoints, key=lambda point: point.name, reverse=True)
    figures = [point.figure for point in newest_first if point.state == "ok" and point.figure]
    if not figures:
        return None
    figures += [v.figure for v in found.versions if v.state == "ok" and v.figure]
    same = [figure for figure in figures if figure.set_id == figures[0].set_id]
    return min(same, key=lambda figure: figure.loss)


def preview(workspace: Workspace, config: Config) -> Plan:
    """What `apply` would do now, and why the rest stays. Nothing is proven or changed."""
    found = survey(Layout(workspace))
    return retention.plan(found.checkpoints, found.versions, config.retention, found.emergencies)


def apply(
    workspace: Workspace,
    config: Config,
    now: Callable[[], str] = clock.now_iso,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Done]:
    """Let go of what is beyond the policy. Hashes new folders first: call from a thread.

    Args:
        should_stop: asked every few MB and before everything that goes; then nothing more does.

    Returns:
        What went, for the event log.

    Raises:
        Refused: the disk is full or read-only.
    """
    layout = Layout(workspace)

    def decide(found: Survey) -> Plan:
        return retention.plan(
            found.checkpoints, found.versions, config.retention, found.emergencies
        )

    with plain_words("retention"):
        decisions = proven(layout, decide, should_stop)
        keep_days = config.retention.trash_days
        done = carry_out(layout, decisions, decide, now(), keep_days, should_stop)
        return done + purge(layout, now(), everything=False)


def proven(
    layout: Layout,
    decide: Callable[[Survey], Plan],
    should_stop: Callable[[], bool] = lambda: False,
    verified: Verified | None = None,
) -> tuple[Decision, ...]:
    """Decide again and again until everything the decision counts on has been proven.

    What was proven is remembered on disk, so the work of a stopped call is not lost.

    Args:
        verified: memory of the caller, which also lasts where the disk has no room for it.
    """
    verified = verified or Verified(layout)
    examined: set[Path] = set()  # each once: what failed is marked, and counts no more
    for _ in range(ROUNDS):
        found = survey(layout)
        decided = decide(found)
        doubtful = [
            path for path in decided.keep if path not in examined and check.looks_sound(path)
        ]
        stopping = should_stop()
        if stopping or not decided.go or not doubtful:
            if decided.go:
                with exclusive(layout):  # staging names are swept by whoever holds the lock
                    verified.save()
            return () if stopping else decided.go
        for path in doubtful:
            if should_stop():
                break
            try:
                _prove(layout, path, verified, should_stop)
            except hashing.GaveWay:
                break
            examined.add(path)
    return ()


def _prove(layout: Layout, path: Path, verified: Verified, should_stop: Callable[[], bool]) -> None:
    """Mark it as damaged when it is. Raises GaveWay, and Unreadable when nobody can tell."""
    try:
        if path.parent == layout.versions:
            check.prove_version(path, verified, should_stop)
        else:
            check.prove(path, verified, should_stop)
    except Unreadable:
        if check.looks_sound(path):  # else the next look counts it out, without a mark
            raise
    except Corrupt as problem:
        if path.is_dir():
            check.mark_damaged(layout, path.name, problem.message)


def carry_out(
    layout: Layout,
    decisions: Iterable[Decision],
    decide: Callable[[Survey], Plan],
    now: str,
    keep_days: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Done]:
    """Carry out decisions one by one, each under the lock and only if it still stands."""
    done = []
    for decision in decisions:
        if should_stop():
            break
        with exclusive(layout):
            # Since the decision a person may have pinned it, restored from it, or deleted another.
            still = {(found.path, found.action) for found in decide(survey(layout)).go}
            if (decision.path, decision.action) in still:
                try:
                    freed = _let_go(layout, decision, now, keep_days)
                except PermissionError as problem:  # somebody else's: the rest goes all the same
                    log.warning("%s cannot be let go: %s", decision.path, problem)
                    continue
                done.append(Done(decision.path, decision.why, decision.action, freed))
    return done


def _let_go(layout: Layout, decision: Decision, now: str, keep_days: int) -> int:
    path, is_version = decision.path, decision.path.parent == layout.versions
    match decision.action:
        case "thin" if is_version:
            part = path / OPTIMIZER_PART
            freed = exclusive_bytes(part)
            trash.discard(layout, part)
            return freed
        case "thin":
            return _thin(layout, path)
        case "trash" if is_version and keep_days:
            trash.throw(layout, path, decision.why, now, keep_days)
            return 0  # it is still there, and counted when it is purged
        case "trash":
            freed = exclusive_bytes(path)
            trash.discard(layout, path)
            check.unmark_damaged(layout, path.name)
            return freed


def purge(
    layout: Layout,
    now: str,
    *,
    everything: bool,
    here: Callable[[Path], bool] = lambda folder: True,
) -> list[Done]:
    """Empty the trash; only what a person could have brought back is worth telling."""
    with exclusive(layout):
        sizes = {entry.folder: exclusive_bytes(entry.folder) for entry in trash.contents(layout)}
        gone = trash.purge(layout, now, everything=everything, here=here)
    return [
        Done(entry.origin(layout), entry.note.why, "purge", sizes[entry.folder])
        for entry in gone
        if entry.note.keep_until
    ]


def thin(workspace: Workspace, folder: Path, now: Callable[[], str] = clock.now_iso) -> Path:
    """Drop a checkpoint's optimizer: commit a thinner one beside it, then trash the first.

    Returns:
        The thinner checkpoint.

    Raises:
        Refused: it is the one that training would go on from, or has no optimizer.
        Corrupt: it is damaged.
    """
    layout = Layout(workspace)
    with plain_words("the checkpoint was not thinned"), exclusive(layout):
        _thin(layout, folder)
        name = checkpoint_name(folder.name)
        assert name is not None  # _thin has checked it
        with_next = checkpoints.CheckpointName(name.global_step, name.generation + 1)
        thinner = folder.with_name(str(with_next))
        trash.purge(layout, now())
        return thinner


def _thin(layout: Layout, folder: Path) -> int:
    seen, name = check.look(folder), checkpoint_name(folder.name)
    if seen.state != "ok" or seen.sealed is None or name is None:
        raise Corrupt(f"{folder.name} cannot be thinned: {seen.problem}")
    here = emergency.standing(layout)
    if here is not None and here.folder == folder:
        raise Refused(f"{folder.name} is what training goes on from, so it keeps its optimizer")
    dropped = bundle.optimizer_entries(seen.sealed)
    if not dropped:
        raise Refused(f"{folder.name} has no optimizer to let go")
    target = folder.with_name(
        str(checkpoints.CheckpointName(name.global_step, name.generation + 1))
    )
    if not target.exists():
        thinner = bundle.without_optimizer(seen.sealed)
        thinner = msgspec.structs.replace(thinner, parent=folder.name, reason="thinned")
        with bundle.staged(target, THINNING_PREFIX) as staging:
            bundle.share_files(folder, thinner.files, staging)
            checkpoints.commit(staging, target, manifest.seal(thinner))
    freed = _own_bytes(folder / entry.name for entry in dropped)
    trash.discard(layout, folder)
    return freed


def _own_bytes(paths: Iterable[Path]) -> int:
    found = [path.lstat() for path in paths]
    return sum(entry.st_blocks * 512 for entry in found if entry.st_nlink == 1)


def pin_checkpoint(workspace: Workspace, name: str) -> None:
    """Protect a checkpoint from retention. Raises Refused when there is none of that name."""
    layout = Layout(workspace)
    with exclusive(layout):
        if checkpoint_name(name) is None or not (workspace.current_model / name).is_dir():
            raise Refused(f"there is no checkpoint {name}")
        durable.make_directory(layout.pins)
        durable.replace(layout.pins / name, b"")
