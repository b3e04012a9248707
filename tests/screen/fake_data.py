"""What the fake daemon has to show: jobs, versions, events, a report. Figures invented."""

from __future__ import annotations

import math
from typing import Any

NOW = "2026-11-24T12:04:31.120Z"
GIGA = 1 << 30


def job(number: int, name: str, state: str = "waiting", **more: Any) -> dict[str, Any]:
    base = {
        "id": number, "name": name, "state": state, "priority": "normal", "place": None,
        "rows": 8000, "rejected_rows": 0, "bytes": 9_400_000, "tokens": 2_100_000,
        "supervised_tokens": 1_200_000, "steps": 130, "verdict": "ok", "summary": "ok",
        "attempts": 0, "held": False, "not_before": None, "added_at": "2026-11-24T09:00:00.000Z",
        "started_at": None, "finished_at": None, "seconds": None, "fraction": None, "eta_s": None,
        "eta_p90_s": None,
        "why_waiting": None, "error": None, "val_before": None, "val_after": None,
    }  # fmt: skip
    found = base | more
    if found["eta_s"]:
        found["eta_p90_s"] = [1.1 * at for at in found["eta_s"]]
    return found


def example_jobs() -> list[dict[str, Any]]:
    blocked = {
        "class": "over_length",
        "message": "blocked: 7.2 % of rows over 4096 tokens",
        "hint": "raise max_length, or accept it with r, o",
    }
    return [
        job(31, "support.jsonl", "processing", rows=41_000, fraction=0.31, attempts=1,
            eta_s=[0, 22_320], started_at="2026-11-24T10:00:00.000Z"),
        job(34, "refunds.jsonl", rows=12_000, priority="high", eta_s=[22_320, 28_320]),
        job(32, "tone.jsonl", verdict="warn", summary="ok, 3 rejects", rejected_rows=3,
            eta_s=[28_320, 35_820]),
        job(35, "greetings-and-farewells.jsonl", rows=640, eta_s=[35_820, 36_000]),
        job(33, "syllogisms.jsonl", rows=90_000, priority="low", eta_s=[36_000, 68_400],
            why_waiting="quiet hours until 22:00"),
        job(30, "catalog.jsonl", "failed", error=blocked, verdict="block",
            summary="7.2 % of rows over 4096 tokens", finished_at="2026-11-24T11:00:00.000Z"),
        job(29, "tone-2.jsonl", "completed", rows=8000, seconds=2520, fraction=1.0,
            val_before=1.419,
            val_after=1.398, finished_at="2026-11-24T11:32:50.000Z"),
    ]  # fmt: skip


def example_versions() -> list[dict[str, Any]]:
    words = ["refund tone fixed", "nightly", "support, second pass", "nightly", "syllogisms"]
    return [
        {
            "number": 42 - i, "name": f"v{42 - i:03d}_20261124", "description": words[i],
            "created_at": f"2026-11-{24 - i:02d}T10:40:00.000Z", "automatic": i in (1, 3),
            "global_step": 18_211 - 900 * i, "lineage": 0, "parent": 41 - i,
            "tokens": 602_000_000 - 30_000_000 * i,
            "files": [{"job_id": 29 - i, "name": f"tone-{i}.jsonl", "rows": 8000,
                       "tokens": 2_100_000}],
            "validation": {"fixed": 1.3981 + 0.013 * i, "general": 2.01}, "bytes": int(1.2 * GIGA),
            "pinned": i == 2, "weights_only": i > 2, "live": i == 0, "state": "ok",
        }
        for i in range(5)
    ]  # fmt: skip


def example_events() -> list[dict[str, Any]]:
    rows = [
        ("12:04:31", "info", "checkpoint", "checkpoint-18400 1.2G in 3.1s"),
        ("12:01:09", "warning", "gradient", "gradient spike 4.1 @18 211"),
        ("11:58:07", "info", "queue", "#34 moved to the top (u undo)"),
        ("11:40:00", "info", "validation", "val 1.3981 best yet → v041"),
        (
            "11:32:50",
            "info",
            "job",
            "tone-2.jsonl done in 42 min: val −0.021 (fixed), −0.008 (general)",
        ),
        ("11:02:11", "error", "trainer", "trainer lost (signal 9), back in 4 s at step 17 904"),
        ("10:48:00", "info", "job", "tone-1.jsonl done in 39 min"),
        ("10:00:02", "info", "job", "support.jsonl started: 41k rows, 130 steps"),
    ]
    return [
        {"id": 5012 - i, "at": f"2026-11-24T{at}.000Z", "level": level, "topic": topic,
         "text": text, "data": {}}
        for i, (at, level, topic, text) in enumerate(rows)
    ]  # fmt: skip


def example_report() -> dict[str, Any]:
    chat = [
        ("<|im_start|>user\nWhere is my refund?<|im_end|>\n<|im_start|>assistant\n", False),
        ("It was sent on Monday and arrives within five days.<|im_end|>", True),
    ]
    return {
        "verdict": "warn", "max_length": 4096, "duplicate_rows": 12, "trained_before_rows": 0,
        "reasons": [{"severity": "warn", "code": "duplicates", "message": "12 rows are there twice",
                     "hint": "trained once each all the same"}],
        "lengths": {"p50": 212, "p90": 640, "p95": 800, "p99": 1800, "longest": 3900},
        "samples": [{"line": 1, "tokens": 40, "supervised": 14,
                     "runs": [{"text": text, "supervised": lit} for text, lit in chat]}],
    }  # fmt: skip


def example_history(path: str) -> dict[str, Any]:
    """Lineage, emergencies and trash, by the last part of the path."""
    drawing = [
        "◆    checkpoint-18400  step 18 400  now",
        "│",
        "● v042_20261124  step 18 211  tone",
        "│ ● v041_20261123  step 17 311  nightly",
        "├─╯",
        "○    checkpoint-16000  restore",
    ]
    node = {
        "kind": "version",
        "name": "v042_20261124",
        "lineage": 1,
        "global_step": 18_211,
        "text": "tone",
        "live": True,
        "sound": True,
    }
    emergency = {
        "number": 3,
        "name": "emergency_003",
        "checkpoint": "checkpoint-17000",
        "why": "restore of v040_20261122",
        "at": "2026-11-22T10:00:00.000Z",
        "global_step": 17_000,
        "lineage": 0,
        "state": "ok",
        "problem": None,
    }
    trashed = {
        "name": "v007_20261001",
        "why": "deleted by a person",
        "keep_until": "2026-12-01T10:00:00.000Z",
        "deleted_at": "2026-11-24T10:00:00.000Z",
    }
    return {
        "lineage": {"nodes": [node], "branches": [], "drawing": drawing},
        "emergencies": {"emergencies": [emergency]},
        "trash": {"trashed": [trashed]},
    }[path.rpartition("/")[2]]  # fmt: skip


def example_backup() -> dict[str, Any]:
    return {
        "location": "/mnt/second", "reachable": True, "problem": "", "same_disk": False,
        "copied": ["v042_20261124", "v041_20261123"], "missing": ["v040_20261122"], "partial": [],
        "bytes": 2 * GIGA, "free_bytes": 700 * GIGA, "last_run_at": "2026-11-24T11:00:00.000Z",
        "running": False, "copying": None, "last": None,
    }  # fmt: skip


def loss_at(step: int) -> float:
    return 1.28 + 1.75 * math.exp(-step / 2600) + 0.1 * math.exp(-step / 15000)


def many_jobs(count: int) -> list[dict[str, Any]]:
    made = [
        job(1000 + i, f"batch-{i:04d}.jsonl", eta_s=[100.0 * i, 100.0 * i + 90])
        for i in range(count)
    ]
    return example_jobs()[:1] + made
