"""The model on disk is held by one at a time: taken at a start, left to a restore, taken again.

Invariant: whoever holds the `.writer` lock may commit, nobody else. What stands on the disk after
the lock was taken again decides how training goes on, not what anybody said about it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer_tui.engine.control import Control
from trainer_tui.safety import checkpoints, clock, locks
from trainer_tui.safety.errors import Locked

if TYPE_CHECKING:  # a session imports torch, and a start takes the lock before that
    from trainer_tui.engine.session import Session

T = TypeVar("T")
LOCK_WAIT_S = 120.0
LOCK_POLL_S = 0.02


def wait_for_lock(take: Callable[[], T | None], path: Path, control: Control) -> T | None:
    """What `take` gives once it gives something; None when the trainer is asked to end instead.

    Raises:
        Locked: the lock at `path` is still held after `LOCK_WAIT_S`.
    """
    deadline_s = clock.monotonic_s() + LOCK_WAIT_S
    while (taken := take()) is None:
        if control.wait_out(LOCK_POLL_S):
            return None
        if clock.monotonic_s() >= deadline_s:
            owner = locks.owner_note(path) or "another process"
            raise Locked(f"{path} is held by {owner}", "end that process")
    return taken


def lock_again(session: Session) -> bool:
    """False when the trainer is asked to end first.

    Raises:
        Locked: as `wait_for_lock`, or the lock is no longer the same file.
    """
    lock = session.lock
    return wait_for_lock(lambda: lock.take_again() or None, lock.path, session.control) is not None


def another_stands(session: Session) -> bool:
    """Whether the newest checkpoint is not the one that the live tensors go on from."""
    folders = checkpoints.list_folders(session.workspace.current_model)
    newest = folders[0].name if folders else ""
    return newest != session.progress.parent
