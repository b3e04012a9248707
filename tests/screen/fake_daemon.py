"""A daemon that trains nothing: the documented API on a real Unix socket, with state to play with.

Its documents are compared with a real daemon's in `test_real_daemon.py`. Run it by
hand with `python tests/screen/fake_daemon.py SOCKET [--jobs N]` to look at the screen.
"""

from __future__ import annotations

import argparse
import json
import queue
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fake_data import NOW, loss_at, many_jobs
from fake_state import FakeDaemon


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    daemon_state: FakeDaemon
    broken: threading.Event

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def parse_request(self) -> bool:
        """A daemon that died answers nothing, on connections that are still open either."""
        if self.broken.is_set():
            self.close_connection = True
            return False
        return super().parse_request()

    def _reply(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        kind = "application/json" if status < 400 else "application/problem+json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/v1/events":
            self._stream()
            return
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        self._reply(*self.daemon_state.get(url.path, query))

    def _change(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        self._reply(*self.daemon_state.change(self.command, urlsplit(self.path).path, body))

    do_POST = do_PATCH = do_DELETE = _change

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        mine: queue.Queue[tuple[int, str, Any]] = queue.Queue()
        state = self.daemon_state
        after = int(self.headers.get("Last-Event-ID") or state.event_id)
        with state.lock:
            for event in state.log:
                if event[0] > after:
                    mine.put(event)
            state.listeners.append(mine)
        try:
            self.wfile.write(b": hello\n\n")
            while not self.broken.is_set():
                try:
                    number, kind, data = mine.get(timeout=0.05)
                except queue.Empty:
                    continue
                text = f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
                self.wfile.write(text.encode())
        except OSError:
            pass
        finally:
            with state.lock:
                state.listeners.remove(mine)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class FakeServer:
    """`FakeDaemon` on a Unix socket; `stop` and `start` play a daemon that dies and comes back."""

    def __init__(self, path: Path, state: FakeDaemon | None = None) -> None:
        self.path = path
        self.state = state or FakeDaemon()
        self._server: _Server | None = None
        self._broken = threading.Event()

    def start(self) -> FakeServer:
        self.path.unlink(missing_ok=True)
        self._broken = threading.Event()
        members = {"daemon_state": self.state, "broken": self._broken}
        self._server = _Server(str(self.path), type("Handler", (_Handler,), members))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._broken.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> FakeServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def hurry(state: FakeDaemon, seconds: int, progress: Path) -> None:
    """So many seconds of training as fast as they are taken: a step each second, a status every
    10 s, an event every 20 s, a validation every 500 s, a queue that changes every minute. How far
    it is stands in `progress`."""
    while not state.listeners:
        time.sleep(0.01)
    for second in range(seconds):
        state.step += 1
        figures = {
            "learning_rate": 2e-4,
            "grad_norm": 0.8 + 0.1 * state.random.random(),
            "tokens_per_s": 41_000.0 + second % 900,
            "supervised_tokens_per_s": 23_000.0,
        }
        loss = loss_at(state.step) + state.random.gauss(0, 0.035)
        state.publish("step", {"step": state.step, "loss": loss, "at": NOW, **figures})
        if second % 10 == 0:
            state.wobble()
            state.told()
        if second % 20 == 0:
            state.said("info", "job", f"something of every day at step {state.step}, in some words")
            del state.events[1000:]
        if second % 500 == 0:
            found = {"step": state.step, "series": "val_loss", "loss": loss, "rows": 200}
            state.publish("evaluated", {**found, "whole": True, "at": NOW})
        if second % 60 == 0:
            changed = [job | {"summary": f"ok, {second} rejects"} for job in state.jobs[1:4]]
            state.publish("jobs", {"revision": state.revision, "changed": changed, "removed": []})
        del state.log[:-100]
        while max((waiting.qsize() for waiting in state.listeners), default=0) > 200:
            time.sleep(0.005)
        if second % 200 == 0:
            progress.write_text(str(second))
    progress.write_text(str(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--still", action="store_true", help="nothing ever changes")
    parser.add_argument("--hurry", type=int, default=0, help="seconds of training, compressed")
    given = parser.parse_args()
    state = FakeDaemon()
    if given.jobs:
        state.jobs = many_jobs(given.jobs)
        state._replace()
    if given.still:
        state.state = "idle"
    server = FakeServer(given.socket, state).start()
    count = 0
    try:
        if given.hurry:
            hurry(state, given.hurry, given.socket.with_name("progress"))
            given.still, state.state = True, "idle"
        while True:
            time.sleep(0.78)
            count += 1
            if given.still or state.state != "training":
                continue
            state.one_step()
            state.wobble()
            running = next((j for j in state.jobs if j["state"] == "processing"), None)
            if running:
                running["fraction"] = min(1.0, running["fraction"] + 0.0002)
            state.told()
            if count % 40 == 0:
                state.said("info", "checkpoint", f"checkpoint-{state.step} 1.2G in 3.1s")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
