"""A checkpoint writer that hangs without being stopped, under the real trainer."""

from __future__ import annotations

import guarded
import invariants
import pytest
from daemon_harness import SUPPORT, Harness, chat_rows, wait_for

IMPATIENT = "from trainer_tui.safety import hang; hang.WRITER_LIMIT_S = 2.0"
SETTINGS = guarded.SETTINGS.replace("save_steps = 20", "save_steps = 50")


@pytest.mark.end_to_end
@pytest.mark.timeout(300)
def test_a_writer_that_hangs_is_ended_and_the_same_state_is_saved_again(tmp_path, monkeypatch):
    base = guarded.tiny_base(tmp_path / "base")
    workspace = guarded.real_workspace(tmp_path / "ws", base, SETTINGS)
    hangs = tmp_path / "hangs"
    path = f"{SUPPORT / 'hanging_writer'}:{SUPPORT}"
    environment = {**guarded.ENVIRONMENT, "HANG_WRITER": str(hangs), "PYTHONPATH": path}
    dropped = {"a.jsonl": chat_rows(6000, "a")}
    (workspace.inbox / "a.jsonl").write_bytes(dropped["a.jsonl"])
    daemon = Harness(workspace, guarded.ENGINE)
    daemon.prelude = IMPATIENT
    daemon.start(env=environment)
    try:
        wait_for(lambda: daemon.training()["checkpoint"], 90, "a checkpoint")
        trainer = daemon.training()["trainer_pid"]
        hangs.touch()
        wait_for(lambda: daemon.said("the checkpoint writer wrote nothing"), 60, "it is noticed")
        uncommitted = daemon.training()["global_step"]
        hangs.unlink()
        wait_for(lambda: saved_step(daemon) > uncommitted, 60, "it is saved after all")
        training = daemon.training()
        assert training["trainer_pid"] == trainer and training["restarts"] == 0
        [incident] = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
        assert incident["class"] == "hang" and "stacks-1.txt" in incident["files"]
        assert "_fsync" in (workspace.incidents / incident["id"] / "stacks-1.txt").read_text()
        assert daemon.stop(limit_s=60) == 0
        invariants.check(workspace, dropped)
    finally:
        hangs.unlink(missing_ok=True)
        daemon.close()
    invariants.nothing_is_left(workspace)


def saved_step(daemon: Harness) -> int:
    checkpoint = daemon.training()["checkpoint"] or "checkpoint-0"
    return int(checkpoint.partition("-")[2].partition("-")[0])
