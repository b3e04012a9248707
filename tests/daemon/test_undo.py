"""The undo log: a hundred acts deep, as deep after a restart, never against what came since."""

from __future__ import annotations

import msgspec
import pytest

from trainer_tui.daemon.undo import DEPTH, HoldJob, SetIntent, UndoLog
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


def wish(daemon) -> str:
    return daemon.training()["intent"]["training"]


def test_undo_of_a_pause_does_not_restart_what_was_stopped_since(serve) -> None:
    daemon = serve().start()
    daemon.post("/v1/training/pause")
    daemon.post("/v1/training/stop", {"now": True})
    refused = daemon.call("POST", "/v1/undo")
    assert refused.status == 409
    assert (
        "something else was asked of training since: training is to stop" in refused.json["detail"]
    )
    assert "trainer-tui resume" in refused.json["hint"]
    assert wish(daemon) == "stopped"


def test_a_pause_of_a_stopped_training_is_undone_to_stopped(serve) -> None:
    daemon = serve().start()
    daemon.post("/v1/training/pause")
    daemon.post("/v1/training/stop", {"now": True})
    daemon.post("/v1/training/pause")
    assert "pause" in daemon.post("/v1/undo")["text"]
    assert wish(daemon) == "stopped"
    daemon.post("/v1/redo")
    assert wish(daemon) == "pause"
    daemon.post("/v1/undo")
    assert daemon.call("POST", "/v1/undo").status == 409, "the pause before the stop"
    assert wish(daemon) == "stopped"


def test_pause_and_resume_are_undone_and_done_again(serve) -> None:
    daemon = serve().start()
    daemon.post("/v1/training/pause")
    daemon.post("/v1/training/resume")
    seen = []
    for verb in ("undo", "undo", "redo", "redo"):
        daemon.post(f"/v1/{verb}")
        seen.append(wish(daemon))
    assert seen == ["pause", "run", "pause", "run"]


def test_a_log_of_an_older_release_is_read() -> None:
    act = msgspec.json.decode(b'{"act":"intent","training":"run"}', type=SetIntent)
    assert act.expects == "pause"
