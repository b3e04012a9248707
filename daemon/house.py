"""Everything the daemon is made of, for the routes. No behaviour of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.disk_watch import DiskWatch
from trainer_tui.daemon.history import History
from trainer_tui.daemon.inbox import Inbox
from trainer_tui.daemon.keeper import Keeper
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.daemon.undo import UndoLog
from trainer_tui.safety.workspace import Workspace


@dataclass(frozen=True, slots=True)
class House:
    """`status()` builds the status document of this moment."""

    workspace: Workspace
    settings: Settings
    bus: Bus
    history: History
    teller: Teller
    desk: Desk
    inbox: Inbox
    training: Training
    keeper: Keeper
    undo: UndoLog
    status: Callable[[], dict[str, Any]]
    disk: DiskWatch
