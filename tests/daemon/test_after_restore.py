"""What a restore means for the queue: what it takes out may wait again, once and for certain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, set_stub, wait_for

from trainer_tui.safety import checkpoints, manifest

SETTINGS = "[versioning]\nafter_every_file = false\non_new_best = false\n"
DIES_BEFORE_IT = """
import os, signal
from trainer_tui.daemon import after_restore
after_restore.settle = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
"""
SOON = "from trainer_tui.daemon import settling\nsettling.AGAIN_S = 0.2\n"
FULL_TILL_THERE_IS_ROOM = """
import errno, os
from trainer_tui.daemon import again
from trainer_tui.queue.store import Queue
def full_till(place, act):
    def may_be_full(*given, **more):
        if not os.path.exists(ROOM):
            raise OSError(errno.ENOSPC, "No space left on device")
        return act(*given, **more)
    return may_be_full
"""
NOT_QUEUED = "again.train_again = full_till(ROOM, again.train_again)\n"
NOT_WITHDRAWN = """
from trainer_tui.daemon.settling import Settling
Queue.requeue = full_till(ROOM, Queue.requeue)
tried_again = Settling.finish
async def only_with_room(self):
    if os.path.exists(ROOM):
        await tried_again(self)
Settling.finish = only_with_room
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(make_workspace(tmp_path / "ws", SETTINGS, steps=4))
    yield harness
    harness.close()


def learn(daemon: Harness, *names: str) -> None:
    for name in names:
        (daemon.workspace.inbox / f"{name}.jsonl").write_bytes(chat_rows(3, name))
        daemon.until_job(f"{name}.jsonl", "completed")


def learnt(daemon: Harness) -> list[str]:
    """What the ledger of the newest checkpoint lists, by name; twice what was learnt twice."""
    found = checkpoints.newest_verified(daemon.workspace.current_model)
    assert found is not None
    entries = manifest.ledger_entries(daemon.workspace.ledger, found.manifest.ledger)
    return sorted(entry.name for entry in entries)


def version(daemon: Harness) -> int:
    return int(daemon.post("/v1/versions", {"description": "v"})["number"])


def started(daemon: Harness, *since: str) -> int:
    """A version after the file "a", and files learnt since."""
    daemon.start()
    learn(daemon, "a")
    number = version(daemon)
    learn(daemon, *since)
    return number


def begun_again(daemon: Harness, number: int) -> None:
    """Back, with the file b in the trainer's hands, for ever."""
    set_stub(daemon.workspace, steps=100_000)
    back(daemon, number)
    in_hand(daemon)


def in_hand(daemon: Harness) -> None:
    wait_for(lambda: (daemon.training()["job"] or {}).get("name") == "b.jsonl")


def stand_still(daemon: Harness) -> None:
    daemon.post("/v1/training/pause")
    daemon.until_training("paused")


def waiting(daemon: Harness) -> list[tuple[int, str]]:
    return [(job["id"], job["name"]) for job in daemon.jobs() if job["state"] == "waiting"]


def back(daemon: Harness, number: int, requeue: bool = True) -> dict[str, Any]:
    path = f"/v1/versions/{number}/restore"
    answer: dict[str, Any] = daemon.post(path, {"requeue": requeue}, timeout_s=60)
    return answer


def undone(daemon: Harness, number: int, **wish: bool) -> dict[str, Any]:
    path = f"/v1/versions/emergencies/{number}/restore"
    answer: dict[str, Any] = daemon.post(path, wish, timeout_s=60)
    return answer


def test_a_restore_that_is_undone_leaves_nothing_to_be_learnt_twice(daemon: Harness) -> None:
    number = started(daemon, "b", "c")
    stand_still(daemon)
    back(daemon, number)
    assert [name for _, name in waiting(daemon)] == ["b.jsonl", "c.jsonl"]
    answer = undone(daemon, 1)
    assert learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert waiting(daemon) == []
    assert len(answer["withdrawn"]) == 2 and daemon.said("the model has it again")
    daemon.post("/v1/training/resume")
    daemon.until_training("idle")
    assert learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_one_that_is_begun_is_withdrawn_too_and_what_a_person_repeats_stays(
    daemon: Harness,
) -> None:
    number = started(daemon, "b")
    begun_again(daemon, number)
    answer = undone(daemon, 1)
    assert answer["withdrawn"] and sorted(job["id"] for job in daemon.jobs()) == [1, 2]
    stand_still(daemon)
    daemon.post("/v1/jobs/2/again")  # a person wants it twice
    [(repeated, _)] = waiting(daemon)
    assert not undone(daemon, 1)["withdrawn"], "it is learnt already, and was to be once more"
    assert [job for job, _ in waiting(daemon)] == [repeated]


def test_undoing_a_restore_says_what_it_takes_out_and_gives_it_back(daemon: Harness) -> None:
    number = started(daemon, "b")
    assert not back(daemon, number, requeue=False)["requeued"]
    learn(daemon, "c")
    since = daemon.get("/v1/versions/emergencies/1")["files_since"]
    assert [file["name"] for file in since] == ["c.jsonl"]
    stand_still(daemon)
    answer = undone(daemon, 1, requeue=True)
    assert [job["name"] for job in answer["requeued"]] == ["c.jsonl"]
    assert learnt(daemon) == ["a.jsonl", "b.jsonl"]
    daemon.post("/v1/training/resume")
    wait_for(lambda: learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"])


def test_what_was_learnt_once_more_is_not_missed_when_the_restore_is_undone(
    daemon: Harness,
) -> None:
    number = started(daemon, "b")
    back(daemon, number)
    wait_for(lambda: learnt(daemon) == ["a.jsonl", "b.jsonl"])
    assert daemon.get("/v1/versions/emergencies/1")["files_since"] == []
    assert not undone(daemon, 1, requeue=True)["requeued"]
    assert learnt(daemon) == ["a.jsonl", "b.jsonl"]


def test_a_daemon_that_dies_after_the_restore_leaves_the_wish_to_the_next(
    daemon: Harness,
) -> None:
    number = started(daemon, "b", "c")
    stand_still(daemon)
    assert daemon.stop() == 0
    daemon.prelude = DIES_BEFORE_IT
    daemon.start()
    with pytest.raises((OSError, ValueError)):
        back(daemon, number)
    assert daemon.ended() == -9
    assert learnt(daemon) == ["a.jsonl"], "the restore itself was committed"
    daemon.prelude = ""
    daemon.start()
    assert [name for _, name in waiting(daemon)] == ["b.jsonl", "c.jsonl"]
    daemon.post("/v1/training/resume")
    wait_for(lambda: learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"])
    assert not (daemon.workspace.state / "restore.json").exists()


def test_a_restore_that_was_refused_leaves_no_wish_behind(daemon: Harness) -> None:
    number = started(daemon, "b")
    name = daemon.get(f"/v1/versions/{number}")["name"]
    weights = daemon.workspace.versions / name / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    refused = daemon.call("POST", f"/v1/versions/{number}/restore", {"requeue": True})
    assert refused.status == 409
    assert not (daemon.workspace.state / "restore.json").exists()
    assert daemon.job("b.jsonl")["state"] == "completed" and not waiting(daemon)


def full_disk(daemon: Harness, what: str) -> Path:
    """Until this file is there; then the queue is brought in line soon."""
    room = daemon.workspace.root / "room"
    daemon.prelude = f"ROOM = {str(room)!r}\n{SOON}{FULL_TILL_THERE_IS_ROOM}{what}"
    return room


def test_a_full_disk_keeps_files_out_of_the_queue_only_till_there_is_room(daemon: Harness) -> None:
    room = full_disk(daemon, NOT_QUEUED)
    number = started(daemon, "b", "c")
    answer = back(daemon, number)
    assert not answer["requeued"] and len(answer["not_requeued"]) == 2
    assert "#2 is not queued yet" in answer["not_requeued"][0]
    refused = daemon.call("POST", f"/v1/versions/{number}/restore", {})
    assert refused.status == 409 and "#3 is not queued yet" in refused.json["detail"]
    assert learnt(daemon) == ["a.jsonl"] and len(daemon.said("is not queued yet")) == 2
    room.touch()
    wait_for(lambda: learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"])
    daemon.until_training("idle")
    assert len(learnt(daemon)) == 3, "each once"


def test_what_could_not_leave_in_time_is_taken_from_the_trainers_hands(daemon: Harness) -> None:
    room = full_disk(daemon, NOT_WITHDRAWN)
    number = started(daemon, "b")
    begun_again(daemon, number)
    assert "still waits" in undone(daemon, 1)["not_requeued"][0]
    in_hand(daemon)
    room.touch()
    wait_for(lambda: sorted(job["id"] for job in daemon.jobs()) == [1, 2])
    daemon.until_training("idle")
    assert learnt(daemon) == ["a.jsonl", "b.jsonl"]


def test_one_that_was_set_aside_meanwhile_leaves_too(daemon: Harness) -> None:
    number = started(daemon, "b")
    begun_again(daemon, number)
    daemon.post("/v1/training/skip")
    assert len(undone(daemon, 1)["withdrawn"]) == 1
    assert sorted(job["id"] for job in daemon.jobs()) == [1, 2]


def test_what_a_person_asked_for_as_well_stays(daemon: Harness) -> None:
    number = started(daemon, "b")
    stand_still(daemon)
    [queued] = back(daemon, number)["requeued"]
    assert daemon.post("/v1/jobs/2/again")["id"] == queued["id"], "it waits already"
    assert not undone(daemon, 1)["withdrawn"]
    assert waiting(daemon) == [(queued["id"], "b.jsonl")]


def test_what_is_trained_and_not_saved_yet_is_named_among_what_a_restore_undoes(
    daemon: Harness,
) -> None:
    """It is saved before the restore, and undone by it like the others."""
    number = started(daemon)
    stand_still(daemon)
    for name in "bc":
        (daemon.workspace.inbox / f"{name}.jsonl").write_bytes(chat_rows(3, name))
        daemon.until_job(f"{name}.jsonl", "waiting")
    set_stub(daemon.workspace, steps=4, stands_at=daemon.training()["global_step"] + 5)  # in c
    daemon.post("/v1/training/resume")
    wait_for(lambda: daemon.job("b.jsonl")["why_waiting"].startswith("trained"))
    (file,) = daemon.get(f"/v1/versions/{number}")["files_since"]
    assert (file["name"], file["saved"]) == ("b.jsonl", False)
    set_stub(daemon.workspace, steps=4)
    daemon.until_training("idle")
    (file,) = [f for f in daemon.get(f"/v1/versions/{number}")["files_since"] if f["job_id"] == 2]
    assert file["name"] == "b.jsonl" and "saved" not in file
