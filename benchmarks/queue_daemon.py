"""A real daemon over a queue of 100,000 files: how long a client waits, and the daemon's memory.

`python -m benchmarks.queue_daemon [--jobs N] [--folder DIR]`. Training is paused. While each
request is measured another client pings all the time: its slowest answer is how long the event
loop was kept from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.queue_scale import fill
from trainer_tui.safety import unix_socket
from trainer_tui.safety.workspace import Workspace

START_LIMIT_S = 120.0
ROW = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}


class Client(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("daemon", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = unix_socket.connect(self._path, 60)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.raw(method, path, body))

    def raw(self, method: str, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body)
        self.request(method, path, data, {"Content-Type": "application/json"})
        reply = self.getresponse()
        found = reply.read()
        if reply.status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {reply.status} {found[:200]!r}")
        return found


class Pinger:
    """A process that asks for a sign of life all the time, and tells its slowest answer (s)."""

    def __init__(self, path: Path) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=ping, args=(path, theirs), daemon=True
        )
        self._process.start()
        self._ours.recv()

    def slowest_s(self) -> float:
        """Ends it."""
        self._ours.send(True)
        found: float = self._ours.recv()
        self._process.join()
        return found


def ping(path: Path, pipe: Any) -> None:
    client, slowest_s = Client(path), 0.0
    client.ask("GET", "/v1/ping")
    pipe.send(True)
    while not pipe.poll(0.002):
        start = time.perf_counter()
        client.ask("GET", "/v1/ping")
        slowest_s = max(slowest_s, time.perf_counter() - start)
    pipe.send(slowest_s)


def memory_mb(pid: int, key: str = "VmRSS") -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) / 1024


def start(root: Path) -> tuple[subprocess.Popen[bytes], Client]:
    command = [sys.executable, "-m", "trainer_tui.daemon", "--workspace", str(root)]
    with (root / "daemon.out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    client, deadline = Client(Workspace(root).socket), time.monotonic() + START_LIMIT_S
    while True:
        try:
            client.ask("GET", "/v1/ping")
            return process, client
        except OSError:
            client.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((root / "daemon.out").read_text()[-2000:]) from None
            time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to make it; a temporary one without it")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=asked.folder))
    (root / "config.toml").write_text("")
    workspace = Workspace(root)
    workspace.prepare()
    pause = {"training": "pause", "by": "benchmark", "at": "", "why": ""}
    (workspace.state / "intent.json").write_text(json.dumps(pause))
    fill(workspace, asked.jobs)
    try:
        measure(workspace, asked.jobs)
    finally:
        shutil.rmtree(root)
    return 0


def measure(workspace: Workspace, jobs: int) -> None:
    begun = time.perf_counter()
    process, client = start(workspace.root)
    try:
        took = time.perf_counter() - begun
        print(f"{'start of the daemon to its first answer':44} {took * 1000:8.0f} ms")
        print(f"{'memory after the start':44} {memory_mb(process.pid):8.0f} MB")
        requests(workspace, client, jobs)
        print(f"{'memory at the end':44} {memory_mb(process.pid):8.0f} MB")
        print(f"{'memory at its highest':44} {memory_mb(process.pid, 'VmHWM'):8.0f} MB")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def requests(workspace: Workspace, client: Client, jobs: int) -> None:
    def timed(label: str, act: Callable[[], Any], times: int = 1) -> Any:
        pinger = Pinger(workspace.socket)
        start = time.perf_counter()
        for _ in range(times):
            found = act()
        took = (time.perf_counter() - start) / times
        waits = pinger.slowest_s() * 1000
        print(f"{label:44} {took * 1000:8.1f} ms, another waits {waits:6.1f} ms at most")
        return found

    def patch(job: int, body: dict[str, Any]) -> Any:
        return client.ask("PATCH", f"/v1/jobs/{job}", body)

    timed("status", lambda: client.ask("GET", "/v1/status"), 20)
    timed("list the first 1,000", lambda: client.ask("GET", "/v1/jobs"), 5)
    timed("list 1,000 in the middle", lambda: client.ask("GET", f"/v1/jobs?offset={jobs // 2}"), 5)
    timed("list all", lambda: client.raw("GET", f"/v1/jobs?limit={jobs}"))
    timed("one job", lambda: client.ask("GET", f"/v1/jobs/{jobs // 2}"), 20)
    timed("move the last to the top", lambda: patch(jobs, {"place": "top"}))
    timed("move into the middle", lambda: patch(jobs - 1, {"before": jobs // 2}))
    timed("change a priority", lambda: patch(jobs // 3, {"priority": "low"}))
    urgent = workspace.root / "urgent.jsonl"
    urgent.write_text(json.dumps(ROW) + "\n")
    body = {"path": str(urgent), "priority": "high"}
    job = timed("add one with high priority", lambda: client.ask("POST", "/v1/jobs", body))
    assert job["place"] == 1, "an arrival of high priority is next"


if __name__ == "__main__":
    raise SystemExit(main())
