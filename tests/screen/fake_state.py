"""What the fake daemon knows and how it changes; thread-safe by one lock."""

from __future__ import annotations

import queue
import random
import sys
import threading
from pathlib import Path
from typing import Any

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
        self.since: dict[str, Any] = {"files_since": [{"name": "tone-2.jsonl"}]}
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
                case ["versions", _] | ["versions", "emergencies", _]:
                    return 200, {**self.versions[0], **self.since}
                case ["versions"]:
                    return 200, {"versions": self.versions, "best": 42, "current_lineage": 0}
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
