"""What a loaded trainer is doing: one of these at a time (`loop.py` moves from one to the next)."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_tui.engine.commit_policy import Reason
from trainer_tui.engine.work import Work


@dataclass(frozen=True, slots=True)
class Hungry:
    """No job in hand; the daemon knows."""


@dataclass(frozen=True, slots=True)
class Training:
    work: Work


@dataclass(frozen=True, slots=True)
class Halted:
    """Paused, with the job that was in hand."""

    work: Work | None


@dataclass(frozen=True, slots=True)
class Aside:
    """A version is to be restored; without it, `before` goes on. `free`: everything is committed
    and the lock is let go of, so nothing may be committed."""

    before: Hungry | Training | Halted
    free: bool = False


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another state of the model stands on the disk, to be loaded. `halted`: paused meanwhile."""

    halted: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    reason: str
    commit: Reason


State = Hungry | Training | Halted | Aside | Elsewhere | Leaving
