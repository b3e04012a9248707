"""Pause, resume, stop, skip, checkpoint: durable wishes, and replies after the effect."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Harness, make_workspace, plant, set_stub, wait_for


def started(serve, **stub):
    daemon = serve(**{"steps": 10_000, **stub})
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    return daemon


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> Iterator[Harness]:
    """Training for ever; every test leaves it so."""
    workspace = make_workspace(tmp_path_factory.mktemp("busy") / "ws", steps=1_000_000)
    plant(workspace, "a.jsonl")
    daemon = Harness(workspace).start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    yield daemon
    daemon.close()


def checkpoints(daemon):
    return sorted(daemon.workspace.current_model.glob("checkpoint-*"))


def test_pause_answers_when_training_stands_still_and_saved(busy):
    daemon = busy
    status = daemon.post("/v1/training/pause")["status"]
    assert status["training"]["state"] == "paused"
    assert status["training"]["unsaved_steps"] == 0
    assert checkpoints(daemon)
    step = daemon.training()["global_step"]
    status = daemon.post("/v1/training/resume")["status"]
    assert status["training"]["state"] in ("training", "saving")
    wait_for(lambda: daemon.training()["global_step"] > step)
    assert daemon.training()["restarts"] == 0


def test_a_pause_survives_any_restart(serve):
    daemon = started(serve)
    daemon.post("/v1/training/pause")
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    daemon.start()
    training = daemon.training()
    assert training["state"] == "paused"
    assert training["intent"]["training"] == "pause"
    assert training["trainer_pid"] is None
    daemon.post("/v1/training/resume")
    daemon.until_training("training")


def test_pause_with_release_ends_the_trainer(busy):
    daemon = busy
    status = daemon.post("/v1/training/pause", {"release": True})["status"]
    assert status["training"]["state"] == "paused"
    assert status["training"]["trainer_pid"] is None
    assert daemon.job("a.jsonl")["state"] == "processing"
    daemon.post("/v1/training/resume")
    daemon.until_training("training")
    assert daemon.training()["restarts"] == 0


def test_stop_lets_the_file_end_and_then_stays_stopped(serve):
    daemon = serve(steps=100)
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "b.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    status = daemon.post("/v1/training/stop")["status"]
    assert status["training"]["state"] == "stopping"
    daemon.until_training("stopped")
    assert daemon.job("a.jsonl")["state"] == "completed"
    assert daemon.job("b.jsonl")["state"] == "waiting"
    assert daemon.training()["intent"]["training"] == "stopped"
    stored = json.loads(daemon.workspace.intent_file.read_bytes())
    assert stored["training"] == "stopped"


def test_stop_now_answers_after_the_trainer_has_gone(busy):
    daemon = busy
    status = daemon.post("/v1/training/stop", {"now": True})["status"]
    assert status["training"]["state"] == "stopped"
    assert status["training"]["trainer_pid"] is None
    assert checkpoints(daemon)
    assert daemon.job("a.jsonl")["state"] == "processing"
    daemon.post("/v1/training/resume")
    daemon.until_training("training")


def test_a_killed_trainer_is_no_crash_and_what_is_lost_is_said(busy):
    daemon = busy
    daemon.post("/v1/training/checkpoint")
    saved = daemon.training()["global_step"]
    wait_for(lambda: daemon.training()["global_step"] > saved + 5)
    restarts, trainer = daemon.training()["restarts"], daemon.training()["trainer_pid"]
    answer = daemon.post("/v1/training/kill")
    training = answer["status"]["training"]
    assert training["state"] == training["intent"]["training"] == "stopped"
    assert training["trainer_pid"] is None and not Path(f"/proc/{trainer}").exists()
    assert answer["lost_steps"] > 0 and training["unsaved_steps"] == 0
    assert f"{answer['lost_steps']} unsaved steps are lost" in daemon.said("was killed")[0]["text"]
    refused = daemon.call("POST", "/v1/training/kill")
    assert refused.status == 409 and "nothing to kill" in refused.json["detail"]
    assert not list(daemon.workspace.incidents.glob("*/incident.json")), "no crash, no incident"
    daemon.post("/v1/training/resume")
    daemon.until_training("training")
    assert daemon.training()["restarts"] == restarts
    wait_for(lambda: daemon.training()["global_step"] > saved)


def test_skip_sets_the_file_aside_and_retry_goes_on_from_there(serve):
    daemon = started(serve, steps=400)
    answer = daemon.post("/v1/training/skip")
    assert answer["job"]["state"] == "failed"
    assert answer["job"]["error"]["class"] == "skipped"
    fraction = answer["job"]["fraction"]
    assert 0 < fraction < 1
    step = daemon.training()["global_step"]
    daemon.post(f"/v1/jobs/{answer['job']['id']}/retry")
    job = daemon.until_job("a.jsonl", "completed")
    assert daemon.training()["global_step"] == 400 > step
    assert job["steps"] == 400


def test_checkpoint_commits_what_is_done_by_now(busy):
    daemon = busy
    before = daemon.training()["global_step"]
    status = daemon.post("/v1/training/checkpoint")["status"]
    newest = max(int(folder.name.removeprefix("checkpoint-")) for folder in checkpoints(daemon))
    assert newest >= before
    assert status["training"]["checkpoint"].startswith("checkpoint-")


def test_checkpoint_with_nothing_unsaved_answers_at_once(serve):
    daemon = serve().start()
    daemon.post("/v1/training/checkpoint")
    assert not checkpoints(daemon)


def test_killed_trainer_is_restarted_and_the_file_completes_once(serve):
    daemon = started(serve, steps=300, save_every=10)
    first = daemon.training()["trainer_pid"]
    wait_for(lambda: len(checkpoints(daemon)) > 1)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: daemon.training()["trainer_pid"] not in (None, first))
    daemon.until_job("a.jsonl", "completed")
    training = daemon.training()
    assert training["restarts"] == 1
    assert training["global_step"] == 300
    assert daemon.said("was ended by SIGKILL")


def test_a_file_that_always_kills_the_trainer_is_set_aside_after_3_attempts(serve):
    daemon = serve(steps=5, crash_at={"1": 2}, settings="[supervision]\nbackoff_s = [0.05]\n")
    plant(daemon.workspace, "bad.jsonl")
    plant(daemon.workspace, "good.jsonl")
    daemon.start()
    job = daemon.until_job("bad.jsonl", "failed")
    daemon.until_job("good.jsonl", "completed")
    assert daemon.training()["restarts"] == 3
    assert job["error"]["class"] == "unknown" and job["error"]["retryable"]
    (file,) = daemon.workspace.queue.glob("failed/*/error.json")
    kept = json.loads(file.read_bytes())
    assert (kept["phase"], kept["step"]) == ("micro-step", 2) and kept["hint"]
    assert daemon.training()["intent"]["training"] == "run"


def test_crash_loop_at_start_ends_in_degraded_and_resume_tries_again(serve):
    daemon = serve(crash_on_start=True, settings="[supervision]\nbackoff_s = [0.05]\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    training = daemon.until_training("degraded")
    assert training["restarts"] == 3
    assert "does not restart" in training["reason"]
    assert daemon.job("a.jsonl")["attempts"] == 0
    refused = daemon.call("POST", "/v1/jobs", {"path": "/etc/hostname"})
    assert refused.status == 409 and "given up" in refused.json["detail"]
    set_stub(daemon.workspace)
    daemon.post("/v1/training/resume")
    daemon.until_job("a.jsonl", "completed")


def test_a_refused_file_fails_and_the_next_one_trains(serve):
    daemon = serve(refuse=[1])
    plant(daemon.workspace, "bad.jsonl")
    plant(daemon.workspace, "good.jsonl")
    daemon.start()
    job = daemon.until_job("bad.jsonl", "failed")
    assert job["error"]["message"] == "made to be refused"
    assert job["error"]["hint"] == "mend it"
    daemon.until_job("good.jsonl", "completed")
    assert daemon.training()["restarts"] == 0


def test_a_file_lost_with_a_damaged_checkpoint_is_trained_again(serve):
    daemon = serve(settings="[versioning]\non_new_best = false\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    daemon.until_training("idle")
    daemon.stop()
    plant(daemon.workspace, "b.jsonl")
    daemon.start()
    daemon.until_job("b.jsonl", "completed")
    daemon.until_training("idle")
    daemon.stop()
    newest = daemon.workspace.current_model / "checkpoint-8"
    weights = newest / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"\0" * weights.stat().st_size)
    plant(daemon.workspace, "c.jsonl")
    daemon.start()
    daemon.until_job("c.jsonl", "completed")
    wait_for(lambda: daemon.said("was lost with a damaged checkpoint"))
    again = wait_for(lambda: [j for j in daemon.jobs() if j["parent_job"] == 2])
    wait_for(lambda: daemon.get(f"/v1/jobs/{again[0]['id']}")["state"] == "completed")
    assert [job["name"] for job in daemon.jobs()].count("a.jsonl") == 1


def test_corrupt_checkpoints_stop_training_with_the_reason(serve):
    daemon = serve(fail_on_start="checkpoint_corrupt")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    training = daemon.until_training("degraded")
    assert training["restarts"] == 1
    assert "made to fail" in training["reason"]


def test_idle_trainer_frees_the_gpu(serve):
    daemon = serve(settings="[supervision]\nidle_exit_s = 0.3\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    wait_for(lambda: daemon.training()["trainer_pid"] is None)
    training = daemon.training()
    assert training["state"] == "idle"
    assert training["restarts"] == 0


def test_a_trained_file_says_that_it_waits_for_its_checkpoint(tmp_path) -> None:
    """In the list, in its page and in the event that a screen lives on; not 0 %."""
    workspace = make_workspace(tmp_path / "ws", "", steps=3, step_s=0.3)
    first = plant(workspace, "first.jsonl")
    plant(workspace, "second.jsonl")
    daemon = Harness(workspace).start()
    try:
        with daemon.events() as stream:
            wait_for(lambda: (daemon.training()["job"] or {}).get("name") == "second.jsonl")
            set_stub(workspace, steps=100_000, step_s=0.05)

            def told(data: dict[str, Any]) -> bool:
                return any(
                    job["id"] == first.id and job["why_waiting"] and job["fraction"] == 1.0
                    for job in data["changed"]
                )

            stream.until("jobs", told)
        job = daemon.job("first.jsonl")
        assert (job["state"], job["fraction"]) == ("processing", 1.0)
        assert job["why_waiting"] == "trained, waits for its checkpoint"
        assert daemon.job("second.jsonl")["why_waiting"] == ""
        daemon.post("/v1/training/checkpoint")
        daemon.until_job("first.jsonl", "completed")
        assert daemon.job("first.jsonl")["why_waiting"] == ""
    finally:
        daemon.close()
