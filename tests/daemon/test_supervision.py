"""What heals itself, and what is told: hangs, stops, a full disk, a dead watchdog, notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from daemon_harness import STUB, SUPPORT, chat_rows, plant, set_stub, wait_for

from trainer_tui.daemon import memory_wait, neighbour
from trainer_tui.safety import crash, locks, processes
from trainer_tui.safety.config import Gpu as Limits
from trainer_tui.safety.crash import Evidence
from trainer_tui.safety.meters import Gpu, Machine

IMPATIENT = (
    "from trainer_tui.safety import hang; from trainer_tui.daemon import hang_watch;"
    "hang.FLOOR_S.clear(); hang.LOOK_INTERVAL_S = 0.2; hang.STOPPED_LIMIT_S = 0.5;"
    "hang_watch.BETWEEN_DUMPS_S = 0.5"
)


def training_daemon(serve, settings="", prelude="", **stub):
    daemon = serve(settings=settings, **{"steps": 10_000, **stub})
    plant(daemon.workspace, "a.jsonl")
    daemon.prelude = prelude
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
    return daemon


def test_a_hung_trainer_is_ended_with_its_stacks_kept_and_the_file_goes_on(serve):
    daemon = training_daemon(
        serve, "[supervision]\nhang_floor_s = 1.5\n", IMPATIENT, hang_at=12, save_every=4
    )
    first = daemon.training()["trainer_pid"]
    wait_for(lambda: daemon.said("made no progress"))
    set_stub(daemon.workspace, steps=10_000)
    wait_for(lambda: daemon.training()["trainer_pid"] not in (None, first))
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 15)
    [incident] = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
    assert incident["class"] == "hang"
    assert {"stacks-1.txt", "stacks-2.txt"} <= set(incident["files"])
    folder = daemon.workspace.incidents / incident["id"]
    assert "train_step" in (folder / "stacks-2.txt").read_text()
    assert daemon.job("a.jsonl")["state"] == "processing"


def test_a_slow_step_is_not_a_hang(serve):
    daemon = training_daemon(serve, "[supervision]\nhang_floor_s = 3.0\n", IMPATIENT)
    trainer = daemon.training()["trainer_pid"]
    set_stub(daemon.workspace, steps=10_000, step_s=1.0)  # a hundred times slower
    step = daemon.training()["global_step"]
    wait_for(lambda: daemon.training()["global_step"] > step + 3)
    assert daemon.training()["trainer_pid"] == trainer
    assert not daemon.said("made no progress")


def test_a_stopped_trainer_is_continued(serve):
    daemon = training_daemon(serve, "", IMPATIENT)
    trainer = daemon.training()["trainer_pid"]
    os.kill(trainer, signal.SIGSTOP)
    wait_for(lambda: daemon.said("is continued"), 10)
    step = daemon.training()["global_step"]
    wait_for(lambda: daemon.training()["global_step"] > step)
    assert daemon.training()["trainer_pid"] == trainer


def test_training_waits_for_room_on_the_disk_and_goes_on_by_itself(serve):
    daemon = serve(settings="[disk]\nmin_free_gb = 1e9\nmin_free_share = 1.0\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.prelude = "from trainer_tui.daemon import disk_watch as d; d.LOOK_EVERY_S = 0.3"
    daemon.start()
    training = daemon.until_training("paused")
    assert "are needed" in training["reason"]
    assert training["intent"]["training"] == "run"
    assert daemon.job("a.jsonl")["why_waiting"] == training["reason"]
    refused = daemon.call("POST", "/v1/jobs", {"path": "/etc/hostname"})
    assert refused.status == 409 and "no file is taken now" in refused.json["detail"]
    daemon.workspace.config_file.write_text("min_save_interval_s = 0.0\n")
    daemon.until_job("a.jsonl", "completed")
    assert daemon.said("there is room on the disk again")
    assert daemon.get("/v1/disk")["holding"] == ""


def test_precision_waits_for_a_lineage_without_optimizer(serve):
    daemon = serve(steps=2)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    answer = daemon.call("PATCH", "/v1/config", {"values": {"precision": "fp32"}})
    assert answer.status == 200 and "new lineage" in answer.json["text"]
    [pending] = daemon.status()["config"]["pending"]
    assert (pending["key"], pending["when"]) == ("precision", "new_lineage")
    assert daemon.call("PATCH", "/v1/config", {"approve": ["precision"]}).status == 409
    daemon.post("/v1/versions", {"description": "all"})
    daemon.post("/v1/versions/1/restore", {"weights_only": True})
    (daemon.workspace.inbox / "b.jsonl").write_bytes(chat_rows(3, "b"))
    daemon.until_job("b.jsonl", "completed")
    assert daemon.status()["config"]["pending"] == []
    assert daemon.get("/v1/config")["approved"]["precision"] == "fp32"


def test_an_edit_for_the_next_file_waits_for_it(serve):
    daemon = training_daemon(serve, "learning_rate = 0.5\n", steps=150)
    trainer = daemon.training()["trainer_pid"]
    plain = daemon.workspace.root / "b.jsonl"
    plain.write_bytes(b'{"messages": [{"role": "user", "content": "q"},'
                      b' {"role": "assistant", "content": "a"}]}\n')  # fmt: skip
    daemon.call("PATCH", "/v1/config", {"values": {"learning_rate": 0.25}})
    assert daemon.status()["config"]["pending"][0]["when"] == "next_file"
    assert daemon.training()["learning_rate"] == 0.5
    daemon.post("/v1/jobs", {"path": str(plain)})
    daemon.until_job("b.jsonl", "completed")
    training = daemon.training()
    assert training["learning_rate"] == 0.25
    assert training["trainer_pid"] != trainer and training["restarts"] == 0
    assert daemon.status()["config"]["pending"] == []


class _Hook(BaseHTTPRequestHandler):
    seen: list[dict] = []  # noqa: RUF012

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.seen.append(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_incident_is_told_to_the_webhook(serve):
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        daemon = serve(settings=f'[notify]\nwebhook = "{url}"\n', refuse=[1])
        plant(daemon.workspace, "bad.jsonl")
        daemon.start()
        notice = wait_for(lambda: _Hook.seen and _Hook.seen[0])
        assert notice["topic"] == "incident.job" and "made to be refused" in notice["text"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_queue_that_is_done_is_told_once_and_a_single_small_file_is_not(serve):
    daemon = serve()
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "b.jsonl", rows=4)
    daemon.start()
    daemon.until_job("b.jsonl", "completed")
    (event,) = wait_for(lambda: daemon.said("the queue is done"))
    assert event["topic"] == "queue" and "2 files, " in event["text"]
    (daemon.workspace.inbox / "alone.jsonl").write_bytes(chat_rows(2, "alone"))
    daemon.until_job("alone.jsonl", "completed")
    daemon.until_training("idle")
    assert len(daemon.said("the queue is done")) == 1


def machine(temperature_c: int | None) -> Machine:
    gpu = Gpu(0, "GPU", 50, 1, 2, temperature_c, 100.0, 200.0)
    return Machine((gpu,), "", 2, 1.0, 1, 2, 0, 1, 2, 3)


def test_a_hot_gpu_pauses_and_resumes_with_hysteresis():
    limits = Limits(max_temperature_c=90, resume_temperature_c=80)
    assert neighbour.hold(machine(89), limits, None, "") == ""
    holding = neighbour.hold(machine(90), limits, None, "")
    assert "90 °C" in holding
    assert neighbour.hold(machine(85), limits, None, holding) != ""
    assert neighbour.hold(machine(79), limits, None, holding) == ""
    assert neighbour.hold(machine(None), limits, None, "") == ""


def test_memory_of_others_pauses_and_resumes_with_hysteresis():
    limits = Limits(foreign_memory_gb=10.0)
    assert neighbour.hold(machine(50), limits, 9_000_000_000, "") == ""
    holding = neighbour.hold(machine(50), limits, 11_000_000_000, "")
    assert "others use 11.0 GB" in holding
    assert neighbour.hold(machine(50), limits, 9_000_000_000, holding) != ""
    assert neighbour.hold(machine(50), limits, 7_000_000_000, holding) == ""
    assert neighbour.hold(machine(50), limits, None, "") == ""


def test_after_an_end_for_want_of_memory_training_waits_for_as_much_as_it_had():
    oom = crash.classify(Evidence(exit_code=-9, oom_kills=1))
    need = memory_wait.need_after(oom, 2_000_000_000, None, 8_000_000_000)
    full = replace(machine(50), memory_used_bytes=7_000_000_000, memory_total_bytes=8_000_000_000)
    assert "1.0 GB of memory are free, the trainer needs 2.2 GB" in memory_wait.hold(
        need, full, None
    )
    assert memory_wait.hold(need, replace(full, memory_used_bytes=1_000_000_000), None) == ""
    assert memory_wait.hold(None, full, None) == ""


def test_out_of_gpu_memory_beside_others_waits_for_them():
    report = {"error_class": "cuda_oom", "message": "CUDA out of memory"}
    alone = crash.classify(Evidence(exit_code=1, reported=report, foreign_gpu_bytes=0))
    assert alone.action is crash.Action.SMALLER_MICRO_BATCH
    crowded = Evidence(exit_code=1, reported=report, foreign_gpu_bytes=20_000_000_000)
    finding = crash.classify(crowded)
    assert finding.action is crash.Action.WAIT_FOR_MEMORY and "20.0 GB" in finding.suggestion
    need = memory_wait.need_after(finding, 0, 20_000_000_000, 1)
    assert "others hold 20.0 GB" in memory_wait.hold(need, machine(50), 20_000_000_000)
    assert memory_wait.hold(need, machine(50), 9_000_000_000) == ""


def test_a_daemon_holds_training_until_there_is_memory_again(serve):
    """The stub reports the class; the meters say that the machine is full, until they do not."""
    daemon = serve(settings="[supervision]\nbackoff_s = [3.0]\n", fail_on_start="host_oom")
    plant(daemon.workspace, "a.jsonl")
    flag = daemon.workspace.root / "memory-is-back"
    daemon.prelude = (
        "import pathlib, dataclasses; from trainer_tui.safety import meters; m = meters.Meters;"
        f"flag = pathlib.Path({str(flag)!r}); real = m.sample;"
        "m.sample = lambda self: dataclasses.replace(real(self), memory_used_bytes=0 if"
        " flag.exists() else real(self).memory_total_bytes)"
    )
    daemon.start()
    wait_for(lambda: "of memory are free" in (daemon.training()["reason"] or ""), why="it waits")
    set_stub(daemon.workspace)
    flag.touch()
    daemon.until_job("a.jsonl", "completed")
    assert daemon.said("there is memory again")


@pytest.fixture
def guarded(serve):
    """A daemon under the real watchdog, with the stub trainer at work."""
    daemon = serve(steps=100_000)
    plant(daemon.workspace, "a.jsonl")
    command = [sys.executable, "-P", "-m", "trainer_tui.safety.watchdog"]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "TRAINER_TUI_TRAINER_ENTRY": STUB}
    watchdog = subprocess.Popen(
        [*command, "--workspace", str(daemon.workspace.root)],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: training_of(daemon), why="the daemon trains")
    yield daemon, watchdog
    for pid in {watchdog.pid, *watchdogs(daemon)}:
        process = processes.identify(pid)
        if process is not None:
            processes.send(process, signal.SIGTERM)
    watchdog.wait(20)
    wait_for(lambda: locks.acquire(daemon.workspace.daemon_lock), why="the daemon has ended")


def training_of(daemon):
    """The training document when a step was done and the API answers, else None."""
    try:
        training = daemon.training()
    except OSError:
        return None
    return training if training["trainer_pid"] and training["global_step"] else None


def watchdogs(daemon) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            named = str(daemon.workspace.root).encode() in words
            if named and b"trainer_tui.safety.watchdog" in words:
                found.append(int(entry.name))
    return found


def test_watchdog_and_daemon_bring_each_other_back(guarded):
    daemon, watchdog = guarded
    first = daemon.status()["daemon"]["pid"]
    step = daemon.training()["global_step"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: training_of(daemon) and daemon.status()["daemon"]["pid"] != first, 60)
    second = daemon.status()["daemon"]["pid"]
    wait_for(lambda: (training_of(daemon) or {}).get("global_step", 0) > step, 60)
    os.kill(watchdog.pid, signal.SIGKILL)
    watchdog.wait()
    wait_for(lambda: [pid for pid in watchdogs(daemon) if pid != watchdog.pid], 30)
    assert daemon.status()["daemon"]["pid"] == second
    assert len(watchdogs(daemon)) == 1
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: training_of(daemon) and daemon.status()["daemon"]["pid"] != second, 60)
    trainers = {process.pid for process in daemon.tagged()} - {daemon.status()["daemon"]["pid"]}
    assert daemon.training()["trainer_pid"] in trainers
