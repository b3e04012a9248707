"""Random faults, replayable by their seed, against a whole daemon at work; then the invariants.

`make torture` runs many seeds (`TORTURE_SEED`, `TORTURE_RUNS`); `make test` one. The trainer is
the stub of `tests/support`: it commits real manifests and ledgers, and a step takes milliseconds.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import invariants
import pytest
from daemon_harness import Harness, chat_rows, make_workspace, plant

from trainer_tui.safety import processes

FILES = 6
FAULTS = 8
SETTINGS = """
[supervision]
backoff_s = [0.05]
attempts = 50
[versioning]
on_new_best = true
"""
REPORT = Path(__file__).parents[2] / "build" / "torture.jsonl"


class Fault:
    """What can be done to a running daemon. Each returns a word for the report."""

    def __init__(self, daemon: Harness, dice: random.Random) -> None:
        self.daemon, self.dice = daemon, dice

    def any(self) -> str:
        kinds = (
            self.kill_trainer, self.kill_trainer, self.kill_daemon, self.kill_both,
            self.stop_trainer, self.pause_and_resume, self.version, self.terminate,
        )  # fmt: skip
        return self.dice.choice(kinds)()

    def _kill(self, pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
        process = processes.identify(pid) if pid else None
        if process is not None:
            processes.send(process, number)

    def kill_trainer(self) -> str:
        self._kill(self.daemon.training()["trainer_pid"])
        return "trainer"

    def kill_daemon(self) -> str:
        self.daemon.stop(signal.SIGKILL)
        self.daemon.start()
        return "daemon"

    def kill_both(self) -> str:
        trainer = self.daemon.training()["trainer_pid"]
        self.daemon.stop(signal.SIGKILL)
        self._kill(trainer)
        self.daemon.start()
        return "both"

    def stop_trainer(self) -> str:
        trainer = self.daemon.training()["trainer_pid"]
        self._kill(trainer, signal.SIGSTOP)
        time.sleep(self.dice.random() * 0.2)
        self._kill(trainer, signal.SIGCONT)
        return "stopped"

    def pause_and_resume(self) -> str:
        self.daemon.post("/v1/training/pause", {"release": self.dice.random() < 0.5})
        self.daemon.post("/v1/training/resume")
        return "pause"

    def version(self) -> str:
        self.daemon.call("POST", "/v1/versions", {"description": "torture"})
        return "version"

    def terminate(self) -> str:
        assert self.daemon.stop(signal.SIGTERM) == 0
        self.daemon.start()
        return "terminated"


def one_run(root: Path, seed: int) -> list[str]:
    dice = random.Random(seed)
    workspace = make_workspace(root, SETTINGS, steps=30, step_s=0.005, save_every=7)
    workspace.prepare()
    dropped = {f"{n}.jsonl": chat_rows(3, f"{seed}-{n}") for n in range(FILES)}
    daemon = Harness(workspace).start()
    done: list[str] = []
    try:
        waiting = list(dropped.items())
        for _ in range(FAULTS):
            if waiting:
                name, data = waiting.pop()
                folder = dice.choice(("high", "", "low"))
                (workspace.inbox / folder / name).write_bytes(data)
            time.sleep(dice.random() * 0.4)
            done.append(Fault(daemon, dice).any())
        for name, data in waiting:
            (workspace.inbox / name).write_bytes(data)
        for name in dropped:
            daemon.until_job(name, "completed", 90)
        training = daemon.until_training("idle", 60)
        assert training["global_step"] == FILES * 30, "rows trained == oracle"
        assert daemon.stop() == 0
        invariants.check(workspace, dropped)
    finally:
        daemon.close()
    invariants.nothing_is_left(workspace)
    return done


@pytest.mark.end_to_end
def test_every_file_is_learnt_once_whatever_dies(tmp_path, seeds):
    for seed in seeds:
        started = time.monotonic()
        done: list[str] = []
        try:
            done = one_run(tmp_path / str(seed), seed)
        except BaseException as problem:
            raise AssertionError(f"seed {seed}: {problem}") from problem
        finally:
            REPORT.parent.mkdir(exist_ok=True)
            with REPORT.open("a") as stream:
                took = round(time.monotonic() - started, 2)
                stream.write(json.dumps({"seed": seed, "faults": done, "seconds": took}) + "\n")


@pytest.mark.end_to_end
def test_the_api_keeps_its_own_openapi_document(tmp_path, request):
    if not request.config.getoption("--torture"):
        pytest.skip("minutes long: make torture")
    schemathesis = Path(sys.executable).with_name("schemathesis")
    if not schemathesis.exists():
        pytest.skip("schemathesis is not installed: pip install schemathesis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = f'[api]\nlisten = "127.0.0.1:{port}"\ntoken = "t"\n'
    workspace = make_workspace(tmp_path / "ws", settings)
    for name in ("a.jsonl", "b.jsonl"):
        plant(workspace, name)
    daemon = Harness(workspace).start()
    try:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        options = ["-H", "Authorization: Bearer t", "--exclude-path", "/v1/events"]
        options += ["--max-examples", "20", "--phases", "coverage,fuzzing", "--seed", "1"]
        document = f"http://127.0.0.1:{port}/v1/openapi.json"
        done = subprocess.run(
            [str(schemathesis), "run", document, *options, "--checks", checks],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert daemon.status()["training"]["restarts"] == 0
    finally:
        daemon.close()
