"""The daemon comes up, owns its workspace, ends as asked, and is picked up where it was."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_harness import Harness, make_workspace, plant, set_stub, wait_for


def test_it_trains_what_waits_and_becomes_idle(serve):
    daemon = serve()
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "b.jsonl", priority="high")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    daemon.until_job("b.jsonl", "completed")
    training = daemon.until_training("idle")
    assert training["global_step"] == 8
    assert training["unsaved_steps"] == 0
    done = [job["name"] for job in daemon.jobs()]
    assert done == ["a.jsonl", "b.jsonl"]  # newest first: b was trained before a


@pytest.fixture(scope="module")
def idle(tmp_path_factory) -> Iterator[Harness]:
    """One without work, below a path that no socket address could hold."""
    deep = tmp_path_factory.mktemp("idle") / ("x" * 120) / ("y" * 120)
    daemon = Harness(make_workspace(deep)).start()
    yield daemon
    daemon.close()


def test_second_daemon_says_who_owns_the_workspace_and_exits_3(idle):
    second = idle.launch()
    assert second.wait(20) == 3
    assert f"pid {idle.process.pid}" in idle.output()
    assert idle.status()["daemon"]["pid"] == idle.process.pid


def test_socket_is_private_and_daemon_json_tells_where(idle):
    mode = idle.workspace.socket.stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(idle.workspace.state.stat().st_mode) == 0o700
    told = json.loads(idle.workspace.daemon_file.read_bytes())
    assert told["pid"] == idle.process.pid
    assert told["socket"] == str(idle.workspace.socket)
    assert told["version"] and told["started_at"]


def test_long_socket_paths_work(idle):
    assert len(str(idle.workspace.socket)) > 220
    assert idle.status()["daemon"]["workspace"] == str(idle.workspace.root)


def test_sigterm_commits_and_exits_0_with_the_intent_unchanged(serve):
    daemon = serve(steps=10_000)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 5)
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.workspace.daemon_file.exists()
    assert not daemon.workspace.socket.exists()
    assert not daemon.workspace.intent_file.exists()
    saved = sorted(daemon.workspace.current_model.glob("checkpoint-*"))
    assert len(saved) == 1
    step = int(saved[0].name.removeprefix("checkpoint-"))
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > step)
    assert daemon.training()["job"]["name"] == "a.jsonl"


def test_stop_file_saves_ends_and_keeps_training_stopped(serve):
    daemon = serve(steps=10_000)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 5)
    daemon.workspace.stop_file.touch()
    assert daemon.ended() == 0
    assert not daemon.workspace.stop_file.exists()
    assert list(daemon.workspace.current_model.glob("checkpoint-*"))
    daemon.start()
    assert daemon.training()["state"] == "stopped"
    assert daemon.job("a.jsonl")["state"] == "processing"
    daemon.post("/v1/training/resume")
    daemon.until_training("training")


def test_killed_daemon_loses_no_step_and_the_next_one_goes_on(serve):
    daemon = serve(steps=10_000)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 5)
    trainer = daemon.training()["trainer_pid"]
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not Path(f"/proc/{trainer}").exists(), why="the orphan ends")
    [saved] = daemon.workspace.current_model.glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > step)
    assert daemon.training()["job"]["name"] == "a.jsonl"


def test_status_file_has_the_plain_keys_and_a_heartbeat(serve):
    daemon = serve(steps=10_000)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()

    def read():
        return json.loads(daemon.workspace.status_file.read_bytes())

    shown = wait_for(lambda: (found := read())["loss"] and found)
    keys = (
        "current_step global_step epoch loss val_loss learning_rate tokens_per_s"
        " gpu_utilisation_percent gpu_memory_used_bytes ram_used_bytes eta_s current_file queue"
        " state heartbeat"
    )
    assert set(keys.split()) <= shown.keys()
    assert shown["state"] == "training"
    assert shown["current_file"] == "a.jsonl"
    first = shown["heartbeat"]
    wait_for(lambda: read()["heartbeat"] != first, why="the heartbeat moves")
    daemon.stop()
    assert read()["trainer_pid"] is None


def test_no_model_is_said_instead_of_crashing(serve):
    daemon = serve()
    (daemon.workspace.models / "base" / "config.json").unlink()
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for(lambda: "no model at" in (daemon.training()["reason"] or ""), why="it is said")
    assert daemon.training()["state"] == "waiting"
    assert daemon.training()["restarts"] == 0
    (daemon.workspace.models / "base" / "config.json").write_text("{}")
    daemon.until_job("a.jsonl", "completed")


def test_broken_history_is_moved_aside_and_said(serve):
    daemon = serve()
    daemon.workspace.prepare()
    daemon.workspace.history_file.write_bytes(b"this is no database" * 1000)
    daemon.start()
    assert list(daemon.workspace.state.glob("history.db.broken-*"))
    assert "could not be used" in (daemon.workspace.logs / "daemon.log").read_text()
    set_stub(daemon.workspace)
    assert daemon.said("the daemon serves")


def test_the_daemon_stays_light(idle):
    """Heavy imports belong to its children: under 120 MB, and a start that does not wait."""
    process = psutil.Process(idle.process.pid)
    assert process.memory_info().rss < 120e6
    maps = {Path(entry.path).name for entry in process.memory_maps()}
    for heavy in ("libtorch", "tokenizers", "_multiarray_umath"):
        assert not any(heavy in name for name in maps), heavy


def test_a_daemon_that_was_killed_is_told_of_by_the_next_and_one_that_ended_is_not(serve):
    daemon = serve().start()
    pid = daemon.process.pid
    assert daemon.stop() == 0
    daemon.start()
    assert not daemon.get("/v1/incidents")["incidents"]
    pid = daemon.process.pid
    daemon.stop(signal.SIGKILL)
    daemon.start()
    (event,) = daemon.said("was killed or crashed")
    assert event["level"] == "warning"
    (incident,) = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
    assert incident["id"] == event["data"]["incident"]
    assert (incident["class"], incident["pid"]) == ("daemon_died", pid)
    assert incident["last_seen_at"]


def test_a_machine_that_went_down_is_told_apart_from_a_daemon_that_died(serve):
    daemon = serve().start()
    daemon.stop(signal.SIGKILL)
    status = json.loads(daemon.workspace.status_file.read_bytes())
    status["heartbeat"] = "2001-02-03T04:05:06.000Z"
    daemon.workspace.status_file.write_text(json.dumps(status))
    daemon.start()
    assert daemon.said("the machine went down")
    (incident,) = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
    assert incident["class"] == "machine_down"


def test_a_shelf_that_cannot_be_read_keeps_nobody_from_training(serve):
    daemon = serve()
    shelf = daemon.workspace.versions
    (shelf / "v001_20261124" / "VERSION.json").mkdir(parents=True)
    daemon.prelude = (
        "from trainer_tui.versions import shelf\n"
        "def torn(layout):\n    raise OSError(5, 'Input/output error')\n"
        "shelf.list_versions = torn\n"
    )
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    assert daemon.said("the versions cannot be read")
    daemon.until_job("a.jsonl", "completed")
    assert daemon.stop() == 0
    daemon.prelude = ""
    daemon.start()
    states = {v["number"]: v["state"] for v in daemon.get("/v1/versions")["versions"]}
    assert states[1] == "incomplete", "it has no manifest, and an unreadable record"
