"""Going back at bad moments, by dice, with a real daemon and a real trainer.

By default one seed; `ROLLBACK_SEEDS=5` runs as many more.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import guarded
import pytest
from daemon_harness import Answer, Harness, chat_rows, wait_for

from trainer_tui.safety import checkpoints

pytestmark = pytest.mark.end_to_end
SETTINGS = """
max_length = 256
pack_tokens = 512
tokens_per_step = 512
warmup_steps = 2
eval_steps = 1000
save_steps = 5
[validation]
rows = 4
[versioning]
on_new_best = false
[supervision]
backoff_s = [0.1]
"""
PATIENCE_S = 120.0
SEEDS = range(1, 1 + int(os.environ.get("ROLLBACK_SEEDS", "1")))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    place = tmp_path_factory.mktemp("dice")
    workspace = guarded.real_workspace(place / "ws", guarded.tiny_base(place / "base"), SETTINGS)
    (workspace.inbox / "long.jsonl").write_bytes(chat_rows(20_000, "a"))
    harness = Harness(workspace, "trainer_tui.engine.entry").start()
    yield harness
    harness.close()


class Wish(threading.Thread):
    """A request on its way; `answer` stays None when the daemon died over it."""

    def __init__(self, daemon: Harness, path: str) -> None:
        super().__init__(daemon=True)
        self._daemon, self._path = daemon, path
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._daemon.call("POST", self._path, {}, timeout_s=PATIENCE_S)
        except OSError:
            return  # it died; what is on the disk is what counts


def trained_on(daemon: Harness, than: int = -1) -> int:
    """Wait for a step after `than`; its number."""
    at = max(than, daemon.training()["global_step"] or 0)
    wait_for(lambda: (daemon.training()["global_step"] or 0) > at, PATIENCE_S, "it trains on")
    return at


def all_is_well(daemon: Harness, step_before: int) -> None:
    """The newest state is whole and not behind, it trains on, and every version is intact."""
    newest = checkpoints.newest_verified(daemon.workspace.current_model)
    assert newest is not None and newest.manifest.global_step >= step_before
    assert not checkpoints.list_folders(daemon.workspace.current_model)[0].name.startswith(".")
    trained_on(daemon, newest.manifest.global_step)
    for version in daemon.get("/v1/versions")["versions"]:
        proof = daemon.post(f"/v1/versions/{version['number']}/verify")
        assert proof["ok"], proof
    assert all(kept["state"] == "ok" for kept in emergencies(daemon))


def emergencies(daemon: Harness):
    return daemon.get("/v1/versions/emergencies")["emergencies"]


def committed_step(daemon: Harness) -> int:
    newest = checkpoints.newest_verified(daemon.workspace.current_model)
    assert newest is not None
    return newest.manifest.global_step


@pytest.mark.parametrize("seed", SEEDS)
def test_going_back_twice_while_saving_and_killed_in_the_middle_loses_nothing(daemon, seed):
    dice = random.Random(seed)
    numbers = []
    for text in "abc":
        trained_on(daemon)
        numbers.append(daemon.post("/v1/versions", {"description": text})["number"])
    trained_on(daemon)
    before = committed_step(daemon)

    saving = Wish(daemon, "/v1/training/checkpoint")
    time.sleep(dice.uniform(0, 0.05))
    twice = [Wish(daemon, "/v1/versions/rollback"), Wish(daemon, "/v1/versions/rollback")]
    for wish in [*twice, saving]:
        wish.join(PATIENCE_S)
    answers = [wish.answer for wish in twice]
    assert [a.status for a in answers if a] == [200, 200], answers
    reached = {a.json["restored"]["number"] for a in answers if a}
    # The save beside them comes first (c, b), last (b, a), or between the two: then the second
    # goes back over what was committed in between (b, b).
    assert numbers[1] in reached and reached <= set(numbers), reached
    lineage = daemon.training()["lineage"]
    assert committed_step(daemon) > before and lineage >= 2
    if dice.random() < 0.5:  # else the next wish comes while the trainer loads
        trained_on(daemon, committed_step(daemon))

    before, kept = committed_step(daemon), len(emergencies(daemon))
    killed = Wish(daemon, "/v1/versions/rollback")
    time.sleep(dice.uniform(0, 0.6))
    whom = dice.choice(("daemon", "trainer"))
    trainer = daemon.training()["trainer_pid"]
    assert daemon.process is not None
    victim = daemon.process.pid if whom == "daemon" else trainer
    if victim is not None and Path(f"/proc/{victim}").exists():
        os.kill(victim, signal.SIGKILL)
    killed.join(PATIENCE_S)
    if whom == "daemon":
        daemon.process.wait()
        daemon.start()
    all_is_well(daemon, before)
    limit = 5  # retention.emergency_backups: older ones may go at any moment
    assert min(kept, limit) <= len(emergencies(daemon)) <= kept + 1
    assert daemon.training()["lineage"] in (lineage, lineage + 1), "the old or the new"
