"""Going back while a trainer runs: it stands aside, and goes on in place or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, plant, set_stub, wait_for

from trainer_tui.safety import checkpoints, config_edit
from trainer_tui.safety.workspace import Workspace

SETTINGS = "[versioning]\non_new_best = false\n[supervision]\nbackoff_s = [0.1]\n"
LONG = {"steps": 100_000}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A long file waits; so does another one."""
    made = make_workspace(tmp_path / "ws", SETTINGS, **LONG)
    plant(made, "long.jsonl")
    plant(made, "next.jsonl")
    return made


@pytest.fixture
def daemon(workspace: Workspace) -> Iterator[Harness]:
    harness = Harness(workspace)
    yield harness
    harness.close()


def step(daemon: Harness) -> int:
    return int(daemon.training()["global_step"] or 0)


def trained_on(daemon: Harness, steps: int = 3) -> int:
    at = step(daemon)
    wait_for(lambda: step(daemon) > at + steps)
    return step(daemon)


def version_and_more(daemon: Harness) -> int:
    """A version of a state that is left behind by some steps; the trainer runs."""
    trained_on(daemon)
    number = int(daemon.post("/v1/versions", {"description": "v"})["number"])
    trained_on(daemon)
    return number


def restore(daemon: Harness, number: int) -> dict[str, Any]:
    answer = daemon.post(f"/v1/versions/{number}/restore", timeout_s=60)
    done: dict[str, Any] = answer["restored"]
    return done


def newest(daemon: Harness) -> checkpoints.Newest:
    found = checkpoints.newest_verified(daemon.workspace.current_model)
    assert found is not None
    return found


def test_the_same_process_goes_on_and_the_file_in_hand_is_begun_again(daemon: Harness) -> None:
    daemon.start()
    number = version_and_more(daemon)
    before, left_at = daemon.training(), step(daemon)
    done = restore(daemon, number)
    assert done["global_step"] > left_at, "every step was committed before it was left"
    wait_for(lambda: step(daemon) > done["global_step"])
    now = daemon.training()
    assert (now["trainer_pid"], now["lineage"], now["restarts"]) == (before["trainer_pid"], 1, 0)
    assert now["job"]["name"] == "long.jsonl" and now["checkpoint"] == done["checkpoint"]
    assert daemon.job("long.jsonl")["attempts"] == 1, "being put down is no failure"
    said = [event["text"] for event in daemon.said("training goes on from")]
    assert said[0].startswith(f"training goes on from {done['checkpoint']} at step")
    kept = daemon.get("/v1/versions/emergencies")["emergencies"]
    assert kept[0]["global_step"] == done["global_step"] - 1


def test_twice_in_a_row_without_a_step_between(daemon: Harness) -> None:
    daemon.start()
    number = version_and_more(daemon)
    trainer = daemon.training()["trainer_pid"]
    first, second = restore(daemon, number), restore(daemon, number)
    assert second["global_step"] > first["global_step"]
    assert second["lineage"] == first["lineage"] + 1 == 2
    wait_for(lambda: daemon.training()["lineage"] == 2)
    trained_on(daemon)
    now = daemon.training()
    assert (now["trainer_pid"], now["restarts"]) == (trainer, 0)


def test_a_file_that_came_meanwhile_is_offered_once(daemon: Harness) -> None:
    """The trainer had nothing to do when it stood aside, and loads before it wants something."""
    daemon.prelude = HOLD_RESTORE
    set_stub(daemon.workspace, steps=5)
    daemon.start()
    daemon.until_training("idle")
    number = int(daemon.post("/v1/versions", {"description": "v"})["number"])
    set_stub(daemon.workspace, **LONG)
    finish = begin_restore(daemon, number)
    (daemon.workspace.inbox / "late.jsonl").write_bytes(chat_rows(3, "late"))
    daemon.until_job("late.jsonl", "waiting")
    assert finish().status == 200
    wait_for(lambda: (daemon.training()["job"] or {}).get("step", 0) > 3)
    late = daemon.job("late.jsonl")
    assert late["attempts"] == 1
    daemon.post("/v1/training/skip", {"job": late["id"]})
    daemon.until_training("idle")
    assert not daemon.said("was offered twice")
    assert daemon.job("late.jsonl")["state"] == "failed"


def test_skipping_while_nothing_is_in_hand_is_refused_at_once(daemon: Harness) -> None:
    daemon.prelude = HOLD_RESTORE
    daemon.start()
    number = version_and_more(daemon)
    finish = begin_restore(daemon, number)
    answer = daemon.call("POST", "/v1/training/skip", {}, timeout_s=10)
    assert answer.status == 409 and "a version is being restored" in answer.json["detail"]
    assert finish().status == 200
    trained_on(daemon)
    assert daemon.job("long.jsonl")["state"] == "processing"


def test_an_edit_that_needs_another_trainer_gets_one_with_the_restore(daemon: Harness) -> None:
    daemon.start()
    number = version_and_more(daemon)
    trainer = daemon.training()["trainer_pid"]
    config_edit.set_values(daemon.workspace.config_file, {"tokens_per_step": 8192})
    done = restore(daemon, number)
    wait_for(lambda: step(daemon) > done["global_step"])
    assert daemon.training()["trainer_pid"] != trainer
    assert daemon.training()["restarts"] == 0
    assert not daemon.get("/v1/status")["config"]["pending"]


def test_a_trainer_that_dies_standing_aside_is_a_crash_and_the_restore_goes_through(
    daemon: Harness,
) -> None:
    daemon.start()
    number = version_and_more(daemon)
    set_stub(daemon.workspace, **LONG, dies_aside=True)
    trainer = daemon.training()["trainer_pid"]
    done = restore(daemon, number)
    set_stub(daemon.workspace, **LONG)
    wait_for(lambda: step(daemon) > done["global_step"])
    now = daemon.training()
    assert now["trainer_pid"] != trainer and now["lineage"] == 1 and now["restarts"] == 1
    job = daemon.job("long.jsonl")
    assert (job["state"], job["attempts"]) == ("processing", 1), "the file is not to blame"


HOLD_RESTORE = """
import pathlib, time
from trainer_tui.versions import restoring
original = restoring.commit_again
def slowly(layout, *rest, **named):
    root = layout.workspace.root
    (root / "restoring").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    return original(layout, *rest, **named)
restoring.commit_again = slowly
"""


SLOW_RETENTION = """
import time
from trainer_tui.versions import keeping
original = keeping.apply
def slowly(*rest, **named):
    time.sleep(0.1)
    return original(*rest, **named)
keeping.apply = slowly
"""


def begin_restore(daemon: Harness, number: int) -> Any:
    """Ask for it in a thread; returns once the commit is about to be made."""
    answers: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(OSError, HTTPException):  # one that is killed does not answer
            path = f"/v1/versions/{number}/restore"
            answers.append(daemon.call("POST", path, {}, timeout_s=60))

    asked = threading.Thread(target=ask)
    asked.start()
    wait_for(lambda: (daemon.workspace.root / "restoring").exists())

    def finish() -> Any:
        (daemon.workspace.root / "go").touch()
        asked.join(30)
        return answers[0]

    return finish


def test_what_is_wished_meanwhile_is_done(daemon: Harness) -> None:
    """A pause waits for the restore; the state and its reason say what goes on."""
    daemon.prelude = HOLD_RESTORE
    daemon.start()
    number = version_and_more(daemon)
    trainer = daemon.training()["trainer_pid"]
    finish = begin_restore(daemon, number)
    now = daemon.training()
    assert (now["state"], now["reason"]) == ("waiting", "a version is being restored")
    stood_at = step(daemon)
    pausing = threading.Thread(target=daemon.post, args=("/v1/training/pause",))
    pausing.start()  # it is answered when training stands still as a pause, with the restore done
    wait_for(lambda: daemon.training()["intent"]["training"] == "pause")
    assert finish().status == 200
    pausing.join(30)
    daemon.until_training("paused")
    assert daemon.training()["trainer_pid"] == trainer
    assert step(daemon) == stood_at + 1 == newest(daemon).manifest.global_step
    daemon.post("/v1/training/resume")
    trained_on(daemon)


def test_what_is_being_restored_is_not_let_go_of_for_space(daemon: Harness) -> None:
    """The disk's watch may run at any moment; what it would let go of is what it says."""
    daemon.prelude = HOLD_RESTORE
    daemon.start()
    numbers = [version_and_more(daemon) for _ in range(4)]
    offered = f"v{numbers[0]:03}"

    def would_go() -> str:
        return " ".join(offer["what"] for offer in daemon.get("/v1/disk")["would_go"])

    assert offered in would_go()
    finish = begin_restore(daemon, numbers[0])
    assert offered not in would_go()
    assert finish().status == 200
    trained_on(daemon)
    daemon.post("/v1/training/checkpoint")  # what is current must not be the reason
    daemon.post("/v1/versions", {"description": "after"})
    assert offered in would_go()


def test_a_stop_meanwhile_ends_the_trainer_at_once(daemon: Harness) -> None:
    daemon.prelude = HOLD_RESTORE
    daemon.start()
    number = version_and_more(daemon)
    finish = begin_restore(daemon, number)
    daemon.post("/v1/training/stop", {"now": True})
    daemon.until_training("stopped")
    assert daemon.training()["trainer_pid"] is None
    assert finish().status == 200
    assert daemon.training()["state"] == "stopped"
    assert newest(daemon).manifest.lineage == 1


def test_a_daemon_killed_in_the_middle_leaves_the_old_state_and_the_next_goes_on(
    daemon: Harness,
) -> None:
    daemon.prelude = HOLD_RESTORE
    daemon.start()
    number = version_and_more(daemon)
    begin_restore(daemon, number)
    stood_at = step(daemon)
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait(10)
    daemon.prelude = ""
    daemon.start()
    wait_for(lambda: step(daemon) > stood_at)
    assert daemon.training()["lineage"] == 0
    done = restore(daemon, number)
    wait_for(lambda: step(daemon) > done["global_step"])
    assert daemon.training()["lineage"] == done["lineage"] >= 1


def test_stop_after_file_finishes_a_file_that_an_earlier_trainer_began(daemon: Harness) -> None:
    """The trainer that had it crashed; the next one is given that file, and no other."""
    daemon.start()
    wait_for(lambda: (daemon.training()["job"] or {}).get("step", 0) > 2)
    at = daemon.training()["job"]["step"]
    daemon.post("/v1/training/stop", {"now": False})
    os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
    set_stub(daemon.workspace, steps=at + 60)
    daemon.until_training("stopped")
    assert daemon.job("long.jsonl")["state"] == "completed"
    assert daemon.job("next.jsonl")["state"] == "waiting"
    assert daemon.training()["intent"]["training"] == "stopped"
    assert daemon.training()["restarts"] == 1


def test_commits_that_come_faster_than_they_are_looked_after_hold_nobody_up(tmp_path) -> None:
    """A toy commits every few milliseconds; retention and automatic versions lag behind, and a
    person who wants something must not wait for all of that. Old checkpoints still go."""
    settings = SETTINGS + "[retention]\ncheckpoints = 2\n"
    workspace = make_workspace(tmp_path / "ws", settings, **LONG, save_every=1, step_s=0.02)
    plant(workspace, "long.jsonl")
    daemon = Harness(workspace)
    daemon.prelude = SLOW_RETENTION
    daemon.start()
    try:
        wait_for(lambda: step(daemon) > 150)
        for text in ("first", "second"):
            daemon.post("/v1/versions", {"description": text}, timeout_s=5)
        kept = list(checkpoints.list_folders(workspace.current_model))
        assert len(kept) < 100, "retention had its turn although commits never ceased"
        set_stub(workspace, **LONG, save_every=1_000_000)
        wait_for(lambda: len(list(checkpoints.list_folders(workspace.current_model))) <= 4)
    finally:
        daemon.close()
