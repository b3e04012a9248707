"""The undo log: a hundred acts deep, and as deep after a restart."""

from __future__ import annotations

import pytest

from trainer_tui.daemon.undo import DEPTH, HoldJob, UndoLog
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace


async def test_a_hundred_acts_are_undone_after_a_restart_and_redone_after_another(tmp_path) -> None:
    space = Workspace(tmp_path)
    space.prepare()
    done: list[object] = []

    async def apply(act, by) -> None:
        done.append((act, by))

    log = UndoLog(space, apply)
    log.load()
    for number in range(130):
        await log.record("ada", f"act {number}", HoldJob(number, False), HoldJob(number, True))

    log = UndoLog(space, apply)  # as a daemon does that starts
    log.load()
    for number in reversed(range(30, 130)):
        assert await log.undo("ada") == f"undone: act {number}"
    assert [act.job_id for act, _ in done] == list(reversed(range(30, 130))) and DEPTH == 100
    with pytest.raises(Refused, match="nothing to undo"):
        await log.undo("ada")

    log = UndoLog(space, apply)
    log.load()
    done.clear()
    for number in range(30, 130):
        assert await log.redo("ada") == f"done again: act {number}"
    assert all(act.held for act, _ in done)
    with pytest.raises(Refused, match="nothing to redo"):
        await log.redo("ada")
