"""Whoever waits for the trainer gets an answer, his own, and soon: also after a crash, in the heat,
and when the disk did not let the end of a trainer be noted."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from daemon_harness import plant, set_stub, wait_for

SETTINGS = "[versioning]\non_new_best = false\n[supervision]\nbackoff_s = [0.1]\n"
LONG = 100_000
SOON_S = 15.0


@pytest.mark.parametrize("path", ["/v1/versions", "/v1/training/checkpoint"])
def test_steps_that_a_crash_lost_are_not_waited_for(serve, path) -> None:
    daemon = serve(settings=SETTINGS, steps=LONG)
    plant(daemon.workspace, "long.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    daemon.post("/v1/training/checkpoint")
    saved = daemon.training()["global_step"]
    wait_for(lambda: daemon.training()["global_step"] > saved + 20)
    set_stub(daemon.workspace, steps=LONG, load_s=2.0, step_s=2.0)
    os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
    wait_for(lambda: daemon.training()["restarts"] == 1 and daemon.training()["trainer_pid"])
    daemon.post(path, {"description": "v"} if "versions" in path else None, timeout_s=SOON_S)


def test_a_version_waits_for_its_own_answer_not_for_that_of_another(serve) -> None:
    daemon = serve(settings=SETTINGS, steps=LONG, save_s=1.0)
    plant(daemon.workspace, "long.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    other = threading.Thread(target=daemon.post, args=("/v1/training/checkpoint",))
    other.start()
    wait_for(lambda: daemon.training()["phase"] == "persist")
    daemon.post("/v1/versions", {"description": "measured"})
    assert daemon.training()["val_loss"] == 0.5, "measured first"
    other.join()


def test_resume_does_not_wait_for_the_heat_to_go(serve) -> None:
    daemon = serve(settings=SETTINGS, steps=LONG)
    plant(daemon.workspace, "long.jsonl")
    hot = daemon.workspace.root / "hot"
    daemon.prelude = f"""
import pathlib
from trainer_tui.daemon import neighbour, rounds
neighbour.hold = lambda *_: "hot" if pathlib.Path({str(hot)!r}).exists() else ""
rounds.TICK_S = rounds.METERS_EVERY_S = 0.1
"""
    daemon.start()
    daemon.until_training("training")
    hot.touch()
    daemon.until_training("paused")
    daemon.post("/v1/training/resume", timeout_s=SOON_S)
    assert daemon.training()["state"] == "paused"
    hot.unlink()
    daemon.until_training("training")


FULL_ONCE = """
import errno
from trainer_tui.queue.store import Queue
def full_once(honest):
    full = [OSError(errno.ENOSPC, "No space left on device")]
    def change(self, *arguments, **named):
        if full:
            raise full.pop()
        return honest(self, *arguments, **named)
    return change
"""


def full_once(serve, change: str):
    """A daemon at work, whose disk refuses the first such change of the queue."""
    daemon = serve(settings=SETTINGS, steps=LONG)
    plant(daemon.workspace, "long.jsonl")
    daemon.prelude = f"{FULL_ONCE}\nQueue.{change} = full_once(Queue.{change})"
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    return daemon


@pytest.mark.parametrize("what", ["stop", "pause", "kill"])
def test_an_end_that_the_disk_did_not_let_be_noted_is_noted_later(serve, what) -> None:
    daemon = full_once(serve, "end_attempt")
    pid = daemon.training()["trainer_pid"]
    body = {"stop": {"now": True}, "pause": {"release": True}, "kill": None}[what]
    daemon.post(f"/v1/training/{what}", body, timeout_s=SOON_S)
    assert daemon.training()["trainer_pid"] is None and not Path(f"/proc/{pid}").exists()
    daemon.post("/v1/training/resume", timeout_s=SOON_S)
    daemon.until_training("training")


def test_a_crash_that_the_disk_did_not_let_be_noted_is_an_incident_all_the_same(serve) -> None:
    daemon = full_once(serve, "end_attempt")
    os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
    wait_for(lambda: daemon.training()["restarts"] == 1)
    assert len(wait_for(lambda: daemon.get("/v1/incidents")["incidents"])) == 1
    daemon.until_training("training")
    assert daemon.job("long.jsonl")["attempts"] == 2


def test_a_skip_that_the_disk_did_not_let_be_done_is_done_later(serve) -> None:
    daemon = full_once(serve, "fail")
    daemon.post("/v1/training/skip", timeout_s=SOON_S)
    assert daemon.job("long.jsonl")["state"] == "failed"
