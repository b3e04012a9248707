"""A daemon that trains nothing: the documented API on a real Unix socket, with state to play with.

Its documents are compared with a real daemon's in `test_fake_is_like_the_real_one.py`. Run it by
hand with `python tests/screen/fake_daemon.py SOCKET [--jobs N]` to look at the screen.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fake_data import (
    GIGA,
    NOW,
    example_backup,
    example_events,
    example_history,
    example_jobs,
    example_report,
    example_versions,
    loss_at,
    many_jobs,
)


class FakeDaemon:
    """State and its changes; thread-safe by one lock."""

    def __init__(self, seed: int = 7) -> None:
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.jobs = example_jobs()
        self.versions = example_versions()
        self.events = example_events()
        self.state = "training"
        self.intent = "run"
        self.reason: str | None = None
        self.step = 18_420
        self.revision = 118
        self.gpus = 1
        self.pending: list[Any] = []
        self.model: dict[str, Any] | None = {
            "name": "Qwen/Qwen3-0.6B", "parameters": 596_000_000, "device": "cuda",
            "precision": "master", "attention": "flex", "latest_version": 42,
        }  # fmt: skip
        self.event_id = 5012
        self.requests: list[tuple[str, str, Any]] = []
        self.refuse: dict[str, tuple[int, dict[str, Any]]] = {}
        self.listeners: list[queue.Queue[tuple[int, str, Any]]] = []
        self.log: list[tuple[int, str, Any]] = []
        self.points = [
            {"step": s, "mean": (m := loss_at(s) + self.random.gauss(0, 0.035)), "min": m - 0.05,
             "max": m + 0.05, "at": NOW}
            for s in range(20, self.step, 26)
        ]  # fmt: skip
        self.val = [
            {"step": s, "mean": loss_at(s) + 0.09, "min": None, "max": None, "at": NOW}
            for s in range(500, self.step, 500)
        ]
        self.screen: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.incidents: list[dict[str, Any]] = []
        self.live: dict[str, dict[str, Any]] = {"gpu": {}, "training": {}, "machine": {}}
        self.undo_act: dict[str, str] | None = {"by": "screen", "text": "#34 moved"}
        self.reads: list[str] = []
        self._replace()

    def renew(self) -> None:
        """As it was in the beginning, for those who listen too."""
        fresh = FakeDaemon()
        kept = ("lock", "log", "listeners", "event_id", "reads", "revision")
        with self.lock:
            for name, value in vars(fresh).items():
                if name not in kept:
                    setattr(self, name, value)
            self.revision += 100
            self.reads.clear()
        self.publish("reset", {})

    def _replace(self) -> None:
        order = {"high": 0, "normal": 1, "low": 2}
        waiting = [j for j in self.jobs if j["state"] == "waiting"]
        waiting.sort(key=lambda j: order[j["priority"]])
        for place, item in enumerate(waiting, 1):
            item["place"] = place
        running = [j for j in self.jobs if j["state"] == "processing"]
        rest = [j for j in self.jobs if j["state"] in ("failed", "completed")]
        self.jobs = running + waiting + rest

    def status(self) -> dict[str, Any]:
        running = next((j for j in self.jobs if j["state"] == "processing"), None)
        waiting = [j for j in self.jobs if j["state"] == "waiting"]
        gpu = {
            "name": "NVIDIA H100 80GB HBM3", "utilisation_percent": 97,
            "memory_used_bytes": int(71.2 * GIGA), "memory_total_bytes": 80 * GIGA,
            "temperature_c": 64, "power_w": 312.0, "power_limit_w": 700.0, **self.live["gpu"],
        }  # fmt: skip
        current = running and {
            "id": running["id"], "name": running["name"], "step": int(running["fraction"] * 130),
            "steps": 130, "fraction": running["fraction"], "epoch": 0, "epochs": 1,
        }  # fmt: skip
        return {
            "revision": self.revision, "now": NOW, "last_event_id": self.event_id,
            "daemon": {"pid": 71, "version": "0.1.0", "started_at": "2026-11-10T12:00:00.000Z",
                       "uptime_s": 14 * 86400 + 300.0, "host": "gpubox", "workspace": "/home/me/ws",
                       "viewers": max(2, len(self.listeners))},
            "training": {
                "state": self.state, "reason": self.reason,
                "intent": {"training": self.intent, "by": "", "at": "", "why": ""},
                "phase": "micro-step", "phase_age_s": 0.02, "trainer_pid": 91, "restarts": 0,
                "global_step": self.step, "lineage": 0, "epoch": 0,
                "checkpoint": "checkpoint-18400", "job": current,
                "loss": self.points[-1]["mean"] if self.points else None,
                "loss_ema": 1.3127, "val_loss": 1.4016, "best_val_loss": 1.3981,
                "learning_rate": 2e-4, "grad_norm": 0.82, "tokens_per_s": 41_800.0,
                "supervised_tokens_per_s": 23_000.0, "step_s": 0.78, "mfu": 0.41,
                "tokens_seen": 602_000_000, "supervised_tokens_seen": 330_000_000,
                "eta_job_s": 22_320.0, "eta_job_p90_s": 24_550.0,
                "eta_queue_s": [21_120.0, 23_520.0],
                "last_sample_at": NOW, "last_sample_age_s": 0.4, "unsaved_steps": 20,
                **self.live["training"],
            },
            "model": self.model,
            "queue": {
                "waiting": len(waiting),
                **{p: sum(j["priority"] == p for j in waiting) for p in ("high", "normal", "low")},
                "processing": int(running is not None), "recently_completed": 1,
                "failed": sum(j["state"] == "failed" for j in self.jobs),
            },
            "machine": {
                "gpus": [{"index": i, **gpu} for i in range(self.gpus)],
                "gpu_problem": "" if self.gpus else "NVML Shared Library Not Found",
                "cores": 16, "load_percent": 12.0, "memory_used_bytes": int(35.2 * GIGA),
                "memory_total_bytes": 64 * GIGA, "swap_used_bytes": 0,
                "disk_used_bytes": 410 * GIGA, "disk_free_bytes": 590 * GIGA,
                "disk_total_bytes": 1000 * GIGA, **self.live["machine"],
            },
            "config": {"hash": "abc", "problem": None, "pending": self.pending},
        }  # fmt: skip

    # --- what happens ---

    def wobble(self) -> None:
        """All the figures that change every second on a machine that trains."""
        some = self.random.random
        left_s = 22_320.0 - 0.78 * (self.step - 18_420)
        self.live["gpu"] = {
            "utilisation_percent": 94 + int(6 * some()), "temperature_c": 63 + int(3 * some()),
            "power_w": 290 + 40 * some(), "memory_used_bytes": int((70.5 + 2 * some()) * GIGA),
        }  # fmt: skip
        self.live["training"] = {
            "loss": self.points[-1]["mean"], "loss_ema": 1.31 + 0.01 * some(),
            "grad_norm": 0.7 + 0.3 * some(), "tokens_per_s": 41_000 + 1000 * some(),
            "step_s": 0.77 + 0.02 * some(), "unsaved_steps": self.step % 1000,
            "tokens_seen": 602_000_000 + 32_768 * (self.step - 18_420),
            "eta_job_s": left_s, "eta_job_p90_s": 1.1 * left_s,
            "eta_queue_s": [left_s - 1200, left_s + 1200],
        }  # fmt: skip
        self.live["machine"] = {
            "load_percent": 10 + 5 * some(), "memory_used_bytes": int((35 + some()) * GIGA),
        }  # fmt: skip

    def publish(self, kind: str, data: Any) -> None:
        with self.lock:
            self.event_id += 1
            self.log.append((self.event_id, kind, data))
            for listener in self.listeners:
                listener.put(self.log[-1])

    def one_step(self) -> None:
        with self.lock:
            self.step += 1
            loss = loss_at(self.step) + self.random.gauss(0, 0.035)
            self.points.append(
                {"step": self.step, "mean": loss, "min": loss, "max": loss, "at": NOW}
            )
        self.publish("step", {
            "step": self.step, "loss": loss, "learning_rate": 2e-4, "grad_norm": 0.82,
            "tokens_per_s": 41_800.0, "supervised_tokens_per_s": 23_000.0, "at": NOW,
        })  # fmt: skip

    def said(self, level: str, topic: str, text: str) -> None:
        with self.lock:
            event = {"id": self.event_id + 1, "at": NOW, "level": level, "topic": topic,
                     "text": text, "data": {}}  # fmt: skip
            self.events.insert(0, event)
        self.publish("said", event)

    def told(self) -> None:
        self.publish("status", self.status())

    # --- requests ---

    def get(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        with self.lock:
            self.reads.append(path)
            match path.removeprefix("/v1/").split("/"):
                case ["status"]:
                    return 200, self.status()
                case ["jobs"]:
                    limit = int(query.get("limit") or 100)
                    return 200, {"revision": self.revision, "jobs": self.jobs[:limit],
                                 "total": len(self.jobs)}  # fmt: skip
                case ["jobs", _, "report"]:
                    return 200, example_report()
                case ["config"]:
                    return 200, {"values": {"screen": self.screen, **self.settings}}
                case ["incidents"]:
                    return 200, {"incidents": self.incidents}
                case ["versions", "rollback"]:
                    return 200, {"version": self.versions[1], "files_since": []}
                case ["disk"]:
                    return 200, {"seconds_left": 9.2 * 86_400}
                case ["undo"]:
                    return 200, {"undo": self.undo_act, "redo": None}
                case ["versions", "diff", _, _]:
                    return 200, {
                        "steps": 900,
                        "validation": {"fixed": {"first": 1.411, "second": 1.398, "by": -0.013}},
                    }
                case ["versions", "lineage" | "emergencies" | "trash"]:
                    return 200, example_history(path)
                case ["backup"]:
                    return 200, example_backup()
                case ["versions", _]:
                    return 200, {**self.versions[0], "files_since": [{"name": "tone-2.jsonl"}]}
                case ["versions"]:
                    return 200, {"versions": self.versions, "latest": 42, "current_lineage": 0}
                case ["history"]:
                    return 200, {"events": self._history(query)}
                case ["metrics"]:
                    rates = [{"step": p["step"], "mean": 2e-4} for p in self.points]
                    grads = [{"step": p["step"], "mean": abs(p["mean"] - 0.5)} for p in self.points]
                    speed = [{"step": p["step"], "mean": 41_800.0} for p in self.points]
                    return 200, {"series": {"loss": self.points, "val_loss": self.val,
                                            "learning_rate": rates, "grad_norm": grads,
                                            "tokens_per_s": speed},
                                 "from_step": 0, "to_step": self.step}  # fmt: skip
        return 404, {"title": "none such", "detail": f"no {path}", "hint": ""}

    def _history(self, query: dict[str, str]) -> list[dict[str, Any]]:
        before, text = int(query.get("before") or 1 << 60), query.get("text", "").lower()
        found = [e for e in self.events if e["id"] < before and text in e["text"].lower()]
        return found[: int(query.get("limit") or 100)]

    def change(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.requests.append((method, path, body))
            if path in self.refuse:
                return self.refuse[path]
            self.revision += 1
            parts = path.removeprefix("/v1/").split("/")
            match method, parts:
                case "PATCH", ["jobs", number]:
                    return self._patch(int(number), body)
                case "DELETE", ["jobs", number]:
                    self.jobs = [j for j in self.jobs if j["id"] != int(number)]
                    self._replace()
                    return 200, {}
                case "POST", ["jobs", number, deed]:
                    return self._job_deed(int(number), deed)
                case "POST", ["jobs"]:
                    return 201, self.jobs[1] | {"id": 36, "name": Path(body["path"]).name}
                case "POST", ["training", deed]:
                    return self._train(deed, body)
                case "POST", ["undo" | "redo" as deed]:
                    return 200, {"text": f"{deed}: #34 moved"}
                case "POST", ["versions"]:
                    made = self.versions[0] | {"number": 43, "description": body["description"]}
                    self.versions.insert(0, made)
                    return 201, made
                case "POST", ["backup"]:
                    return 200, {"done": None, **example_backup()}
                case _:
                    return 200, {}

    def _find(self, number: int) -> dict[str, Any] | None:
        return next((j for j in self.jobs if j["id"] == number), None)

    def _patch(self, number: int, body: dict[str, Any]) -> tuple[int, Any]:
        found = self._find(number)
        if found is None:
            return 404, {"title": "none such", "detail": f"no job {number}", "hint": ""}
        if "priority" in body:
            found["priority"] = body["priority"]
        self.jobs.remove(found)
        waiting = [j for j in self.jobs if j["state"] == "waiting"]
        at = found["place"] - 1
        if "before" in body:
            at = next(i for i, j in enumerate(waiting) if j["id"] == body["before"])
        elif "after" in body:
            at = next(i for i, j in enumerate(waiting) if j["id"] == body["after"]) + 1
        elif body.get("place"):
            at = 0 if body["place"] == "top" else len(waiting)
        if waiting and "priority" not in body:  # a move across takes the neighbours' priority
            near = (
                waiting[at] if "before" in body or body.get("place") == "top" else waiting[at - 1]
            )
            found["priority"] = near["priority"]
        waiting.insert(at, found)
        self.jobs = (
            [j for j in self.jobs if j["state"] == "processing"]
            + waiting
            + [j for j in self.jobs if j["state"] in ("failed", "completed")]
        )
        self._replace()
        return 200, found

    def _job_deed(self, number: int, deed: str) -> tuple[int, Any]:
        found = self._find(number)
        if found is None:
            return 404, {"title": "none such", "detail": f"no job {number}", "hint": ""}
        if deed == "again":
            return 201, found | {"id": 36, "state": "waiting"}
        if deed == "retry":
            found |= {"state": "waiting", "error": None}
        else:
            found["held"] = deed == "hold"
        self._replace()
        return 200, found

    def _train(self, deed: str, body: dict[str, Any]) -> tuple[int, Any]:
        match deed:
            case "pause":
                self.state, self.intent = "paused", "pause"
            case "resume":
                self.state, self.intent = "training", "run"
            case "stop":
                self.intent = "stopped" if body.get("now") else "stop_after_file"
                self.state = "stopped" if body.get("now") else self.state
            case "kill":
                self.state = self.intent = "stopped"
            case _:
                pass
        status = self.status()
        self.publish("status", status)
        return 200, {"status": status, "lost_steps": 20}


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
