"""What a restore means for the queue.

Files that it took out of the model wait again, when that was wished for. What waited only because
an earlier restore had taken it out leaves the queue when the model has it again: nothing is learnt
twice, nothing that somebody wants back is forgotten.

Invariant: what was wished is on disk before the restore is committed, and goes when it was done.
A daemon that dies in between, or a disk that is full, leaves it to the next time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trainer_tui.daemon import again
from trainer_tui.queue.job import COMPLETED, FAILED, Job
from trainer_tui.queue.store import Queue
from trainer_tui.safety import clock, durable, state_file
from trainer_tui.safety.errors import Corrupt, NotFound, Stale, TrainerTuiError, Unreadable
from trainer_tui.safety.manifest import LedgerEntry, LedgerHead
from trainer_tui.safety.state_file import Unusable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import emergency, trained
from trainer_tui.versions.layout import Layout

NOTE = "restore.json"
NO_LINEAGE = -1


class Wish(msgspec.Struct, frozen=True):
    """`state/restore.json`: where the model stood before, and what a person wants for its files."""

    lineage: int
    ledger: LedgerHead | None
    requeue: bool
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Whether the files that a restore takes out of the model shall wait again, and who says so."""

    requeue: bool = False
    by: str = "daemon"


@dataclass(slots=True)
class Settled:
    """What came of it. `requeued`: jobs that wait now. `withdrawn`: sentences on jobs that left
    the queue. `problems`: sentences on what could not be done. `spared`: jobs that should leave
    and are in the trainer's hands. With either of the last two the wish stays, as far as trying
    again can help."""

    requeued: list[Job] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    spared: set[int] = field(default_factory=set)


def is_noted(workspace: Workspace) -> bool:
    return os.path.lexists(_note(workspace))


def note(workspace: Workspace, asked: Asked) -> None:
    """Write the wish down. Call while no trainer holds the model, before the restore.

    Raises:
        OSError: it could not be written; nothing may be restored.
    """
    before = emergency.standing(Layout(workspace))
    wish = Wish(
        before.sealed.lineage if before else NO_LINEAGE,
        before.sealed.ledger if before else None,
        asked.requeue,
        asked.by,
        clock.now_iso(),
    )
    durable.replace(_note(workspace), msgspec.json.encode(wish))


def settle(
    workspace: Workspace,
    queue: Queue,
    *,
    spared: Collection[int],
    dealt_with: set[int],
) -> Settled:
    """Do what was wished, when its restore was committed. Call on the queue's thread.

    Args:
        spared: jobs in the trainer's hands; the caller has them set aside and asks again.
        dealt_with: jobs that an earlier try has queued again or found gone; grows.

    Raises:
        OSError: the disk failed before anything was done; the wish stays.
    """
    done = Settled()
    wish = _read(workspace)
    if isinstance(wish, Unusable):
        aside = state_file.set_aside(_note(workspace))
        text = "what was wished for the files of the last restore is not known"
        done.problems.append(f"{text}: {wish.text}{aside}")
        return done
    if wish is None:
        return done
    now = emergency.standing(Layout(workspace))
    if now is None and wish.lineage != NO_LINEAGE:
        done.problems.append("no checkpoint can be read, so it is not known what is learnt")
        return done
    if now is None or now.sealed.lineage == wish.lineage:  # the restore was never committed
        durable.remove_file(_note(workspace))
        return done
    try:
        change = trained.change(workspace.ledger, wish.ledger, now.sealed.ledger)
    except Corrupt as problem:
        text = f"which files were trained since is not known: {problem.message}"
        done.problems.append(text)
        if not isinstance(problem, Unreadable):  # no other time will tell
            durable.remove_file(_note(workspace))
        return done
    left = _withdraw(queue, change.regained, spared, done)
    if wish.requeue:
        left = _requeue(queue, change.lost, wish.by, done, dealt_with) or left
    if not left:
        durable.remove_file(_note(workspace))
    return done


def _requeue(
    queue: Queue, lost: Sequence[LedgerEntry], by: str, done: Settled, dealt_with: set[int]
) -> bool:
    """In the order in which they were trained. True: some have to be tried again."""
    left = False
    for entry in reversed(lost):
        job_id = entry.job_id
        if job_id in dealt_with:
            continue  # what became of it since is a person's business
        try:
            done.requeued.append(again.train_again(queue, job_id, by, after_restore=True))
        except TrainerTuiError as problem:
            done.problems.append(f"#{job_id} stays out of the queue: {problem.message}")
        except OSError as problem:
            done.problems.append(f"#{job_id} is not queued yet: {problem}")
            left = True
            continue
        dealt_with.add(job_id)
    return left


def _withdraw(
    queue: Queue, regained: Sequence[LedgerEntry], spared: Collection[int], done: Settled
) -> bool:
    """Those that wait, are begun or were set aside. True: some have to be tried again."""
    learnt = Counter(entry.file_sha256 for entry in regained)
    left = False
    for job in queue.jobs():
        sha256 = job.meta.file_sha256
        if job.folder == COMPLETED or not job.meta.after_restore or not learnt[sha256]:
            continue
        learnt[sha256] -= 1
        if job.id in spared:
            done.spared.add(job.id)
            left = True
            continue
        try:
            if job.folder != FAILED:
                queue.requeue(job.id)  # one that was begun: its steps are not in the model either
            queue.remove(job.id)
        except (NotFound, Stale, FileNotFoundError):
            continue  # a person took it out by hand
        except (OSError, TrainerTuiError) as problem:
            done.problems.append(f"#{job.id} {job.name} still waits: {problem}")
            left = True
            continue
        done.withdrawn.append(f"#{job.id} {job.name} left the queue: the model has it again")
    return left


def _read(workspace: Workspace) -> Wish | Unusable | None:
    try:
        return state_file.read(_note(workspace), msgspec.json.Decoder(Wish).decode)
    except FileNotFoundError:
        return None


def _note(workspace: Workspace) -> Path:
    return workspace.state / NOTE
