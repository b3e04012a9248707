"""Standing aside: the model on disk is left to somebody else for a while, and taken up again.

Invariant: whoever holds the `.writer` lock may commit, nobody else. What stands on the disk after
the lock was taken again decides how training goes on, not what anybody said about it.
"""

from __future__ import annotations

from trainer_tui.engine.session import Session
from trainer_tui.safety import checkpoints, clock, locks
from trainer_tui.safety.errors import Locked

LOCK_WAIT_S = 120.0
LOCK_POLL_S = 0.02


def lock_again(session: Session) -> bool:
    """Wait for the lock; False when the trainer is asked to end instead.

    Raises:
        Locked: it is still held after `LOCK_WAIT_S`, or it is no longer the same file.
    """
    deadline_s = clock.monotonic_s() + LOCK_WAIT_S
    while not session.lock.take_again():
        if session.control.wait_out(LOCK_POLL_S):
            return False
        if clock.monotonic_s() >= deadline_s:
            owner = locks.owner_note(session.lock.path) or "another process"
            raise Locked(f"{session.lock.path} is held by {owner}", "end that process")
    return True


def another_stands(session: Session) -> bool:
    """Whether the newest checkpoint is not the one that the live tensors go on from."""
    folders = checkpoints.list_folders(session.workspace.current_model)
    newest = folders[0].name if folders else ""
    return newest != session.progress.parent
