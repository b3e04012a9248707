"""A real daemon process in a workspace of its own, with a client; for tests of every room.

`Harness` starts `python -m trainer_tui.daemon`, by default with the stub trainer of
`stub_trainer.py`; `entry="trainer_tui.engine.entry"` takes the real one. Everything it started is
gone after `close`, or it says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trainer_tui.queue.job import DATA_NAME, META_NAME, Job, Meta, encode_meta
from trainer_tui.queue.store import Queue
from trainer_tui.safety import durable, hashing, processes, unix_socket
from trainer_tui.safety.processes import ProcessId
from trainer_tui.safety.workspace import Workspace

SUPPORT = Path(__file__).parent
STUB = "stub_trainer"
T = TypeVar("T")
DEADLINE_S = 20.0


def wait_for(what: Callable[[], T], limit_s: float = DEADLINE_S, why: str = "") -> T:
    """The first true value of `what()`; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {why or what}")
        time.sleep(0.01)


def chat_rows(count: int, seed: str = "") -> bytes:
    """So many valid rows, different for every seed."""
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"{seed} question {i}"},
                {"role": "assistant", "content": f"answer {i}"},
            ]
        }
        for i in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_workspace(root: Path, settings: str = "", **stub: Any) -> Workspace:
    """A workspace with a pretended base model; `stub` configures the stub trainer."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.toml").write_text(f"min_save_interval_s = 0.0\n{settings}")
    base = root / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    workspace = Workspace(root)
    set_stub(workspace, **stub)
    return workspace


def set_stub(workspace: Workspace, **options: Any) -> None:
    durable.replace_view(workspace.root / "stub.json", json.dumps(options).encode())


def plant(workspace: Workspace, name: str, rows: int = 3, priority: str = "normal") -> Job:
    """Put a job into the queue of a workspace that no daemon serves."""
    workspace.prepare()
    queue = Queue(workspace)
    data = chat_rows(rows, name)
    staged = workspace.queue / f"{durable.STAGING_PREFIX}{name}"
    staged.mkdir()
    durable.write_new(staged / DATA_NAME, data, 0o400)
    sha256 = hashing.hash_file(staged / DATA_NAME)
    meta = Meta(
        original_name=name, file_sha256=sha256, bytes=len(data), rows=rows, kept_rows=rows,
        tokens=rows * 10, supervised_tokens=rows * 5, verdict="ok", summary="ok",
    )  # fmt: skip
    durable.write_new(staged / META_NAME, encode_meta(meta))
    return queue.admit(staged, priority, added_by="test")


class _Connection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("daemon", timeout=timeout_s)
        self._path, self._timeout_s = path, timeout_s

    def connect(self) -> None:
        self.sock = unix_socket.connect(self._path, self._timeout_s)


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Harness:
    """One workspace, one daemon at a time."""

    def __init__(self, workspace: Workspace, entry: str = STUB) -> None:
        self.workspace, self.entry = workspace, entry
        self.prelude = ""  # Python to run in the daemon first, to shorten its patience
        self.process: subprocess.Popen[bytes] | None = None

    # --- the process -----------------------------------------------------------------------------

    def launch(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a daemon process without waiting for it."""
        command = [sys.executable, "-m", "trainer_tui.daemon"]
        if self.prelude:
            run = (
                "import sys; from trainer_tui.daemon.run import main; sys.exit(main(sys.argv[1:]))"
            )
            command = [sys.executable, "-c", f"{self.prelude}\n{run}"]
        command += ["--workspace", str(self.workspace.root), "--trainer-entry", self.entry]
        output = self.workspace.root / "daemon.out"
        with output.open("ab") as stream:
            return subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": str(SUPPORT), **(env or {})},
                start_new_session=True,
            )

    def start(self, env: dict[str, str] | None = None) -> Harness:
        """Start the daemon and wait until it answers."""
        self.process = self.launch(env=env)
        wait_for(self._answers_or_ended, why="the daemon answers")
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended: {self.output()[-3000:]}")
        return self

    def _answers_or_ended(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        with contextlib.suppress(OSError):
            return self.call("GET", "/v1/ping").status == 200
        return False

    def output(self) -> str:
        return (self.workspace.root / "daemon.out").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM, limit_s: float = DEADLINE_S) -> int:
        """Signal the daemon and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.ended(limit_s)

    def ended(self, limit_s: float = DEADLINE_S) -> int:
        assert self.process is not None
        return self.process.wait(limit_s)

    def tagged(self) -> list[ProcessId]:
        """Processes of this workspace's daemons that run now."""
        found = self.workspace.root.stat()
        return processes.tagged(f"{found.st_dev:x}-{found.st_ino:x}")

    def close(self) -> None:
        """End everything; fails when something of ours would not end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            wait_for(lambda: not self.tagged(), 10, "nothing of the daemon is left")
        finally:
            for process in self.tagged():
                processes.send(process, signal.SIGKILL)

    # --- the API ---------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """One request. `body`: bytes as they are, anything else as JSON."""
        connection = _Connection(self.workspace.socket, timeout_s)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            kind = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**kind, **(headers or {})})
            reply = connection.getresponse()
            return Answer(reply.status, dict(reply.getheaders()), reply.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer)
        return answer.json

    def post(self, path: str, body: Any = None, timeout_s: float = 30.0) -> Any:
        answer = self.call("POST", path, body, timeout_s=timeout_s)
        assert answer.status in (200, 201), (path, answer)
        return answer.json

    def status(self) -> Any:
        return self.get("/v1/status")

    def training(self) -> Any:
        return self.status()["training"]

    def jobs(self) -> list[Any]:
        found: list[Any] = self.get("/v1/jobs")["jobs"]
        return found

    def job(self, name: str) -> Any:
        """The job of that name, or None."""
        return next((job for job in self.jobs() if job["name"] == name), None)

    def until_job(self, name: str, state: str, limit_s: float = DEADLINE_S) -> Any:
        def there() -> Any:
            job = self.job(name)
            return job if job is not None and job["state"] == state else None

        return wait_for(there, limit_s, f"{name} is {state}")

    def until_training(self, state: str, limit_s: float = DEADLINE_S) -> Any:
        def there() -> Any:
            training = self.training()
            return training if training["state"] == state else None

        return wait_for(there, limit_s, f"training is {state}")

    def said(self, text: str) -> list[Any]:
        """Events in history whose text contains `text`."""
        from urllib.parse import quote

        found: list[Any] = self.get(f"/v1/history?limit=1000&text={quote(text)}")["events"]
        return found

    @contextlib.contextmanager
    def events(self, after: int | None = None) -> Iterator[EventStream]:
        stream = EventStream(self.workspace.socket, after)
        try:
            yield stream
        finally:
            stream.close()


class EventStream:
    """A reader of `/v1/events` in a thread; `seen` grows."""

    def __init__(self, socket: Path, after: int | None) -> None:
        self.seen: list[tuple[int, str, Any]] = []
        self._connection = _Connection(socket, 30.0)
        headers = {"Last-Event-ID": str(after)} if after is not None else {}
        self._connection.request("GET", "/v1/events", headers=headers)
        self._reply = self._connection.getresponse()
        assert self._reply.status == 200
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        number, kind = 0, ""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            while line := self._reply.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                match name:
                    case "id":
                        number = int(value)
                    case "event":
                        kind = value
                    case "data":
                        self.seen.append((number, kind, json.loads(value)))

    def until(self, kind: str, check: Callable[[Any], bool] = lambda _: True) -> Any:
        def there() -> Any:
            return next((e for e in list(self.seen) if e[1] == kind and check(e[2])), None)

        return wait_for(there, why=f"an event {kind}")

    def close(self) -> None:
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(2)
        self._connection.close()
        self._thread.join(5)
