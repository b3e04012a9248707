"""The screen as it looks, in the states and sizes that matter. `--snapshot-update` after a change
that was looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from screen_rest import at_rest

from trainer_tui.safety import clock
from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.glyphs import ASCII, UNICODE
from trainer_tui.tui.reduce import LinkChanged
from trainer_tui.tui.remote import Remote
from trainer_tui.tui.view import Live, Lost


def paused(state: Any) -> None:
    state.state, state.intent, state.reason = "paused", "pause", "asked by ada"


def degraded(state: Any) -> None:
    state.state, state.intent = "degraded", "degraded"
    state.reason = "the loss was not finite in 5 steps"
    state.said("error", "training", "given up: the loss was not finite in 5 steps")


def no_gpu(state: Any) -> None:
    state.gpus = 0


def empty(state: Any) -> None:
    state.jobs, state.versions, state.points, state.val, state.events = [], [], [], [], []
    state.state, state.step = "idle", None


def idle(state: Any) -> None:
    state.jobs = [job for job in state.jobs if job["state"] == "completed"]
    state.state = "idle"


def thousand(state: Any) -> None:
    state.jobs = sys.modules["screen_fake_daemon"].many_jobs(1000)
    state._replace()


def unsaved(state: Any) -> None:
    state.jobs[0] |= {"fraction": 1.0, "why_waiting": "trained, waits for its checkpoint"}
    state.said("info", "checkpoint", "checkpoint-12000: 1.2 GB in 3.1 s")
    state.said("info", "training", "training is to pause")
    state.events[0]["data"] = {"intent": "pause", "step": 15_000}


Shot = tuple[str, tuple[int, int], Callable[[Any], None] | None, list[str], dict[str, Any]]
SHOTS: list[Shot] = [
    ("training", (80, 24), None, [], {}),
    ("training", (60, 15), None, [], {}),
    ("training", (40, 12), None, [], {}),
    ("training", (120, 40), None, [], {}),
    ("training", (200, 60), None, [], {}),
    ("paused-with-versions", (80, 24), paused, ["v"], {}),
    ("degraded-with-evidence", (160, 48), degraded, ["4"], {}),
    ("no-gpu", (80, 24), no_gpu, ["5"], {}),
    ("empty", (80, 24), empty, [], {}),
    ("roll-back-asked", (80, 24), None, ["R"], {}),
    ("stop-menu", (80, 24), None, ["s"], {}),
    ("light", (80, 24), None, ["1", "left"], {"palette": "light"}),
    ("ascii", (80, 24), None, [], {"glyphs": ASCII, "palette": "mono"}),
    ("lost", (80, 24), None, [], {}),
    ("training", (160, 48), unsaved, [], {}),
    ("idle", (80, 24), idle, [], {}),
    ("idle", (120, 40), idle, [], {}),
    ("paused", (60, 15), paused, [], {}),
    ("degraded", (80, 24), degraded, [], {}),
    ("no-gpu", (120, 40), no_gpu, [], {}),
    ("empty", (120, 40), empty, [], {}),
    ("thousand-jobs", (80, 24), thousand, [], {}),
    ("lost", (200, 60), None, [], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "prepare", "keys", "more"),
    SHOTS,
    ids=[f"{name}-{size[0]}x{size[1]}" for name, size, *_ in SHOTS],
)
def test_picture(
    name: str, size: tuple[int, int], prepare: Any, keys: list[str], more: Any,
    snap_compare: Any, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(clock, "monotonic_s", lambda: 1000.0)
    if prepare:
        prepare(server.state)
    app = TrainerApp(Remote(server.path), **({"glyphs": UNICODE} | more))

    async def look(pilot: Any) -> None:
        for _ in range(300):
            # Live is said when the whole snapshot has been read; a wide screen reads more after it.
            wide = app.feed.second_chart
            if isinstance(app.view.link, Live) and (not wide or "grad_norm" in app.view.curves):
                break
            await pilot.pause(0.02)
        await at_rest(app, pilot)
        if name == "lost":
            app.workers.cancel_group(app, "feed")
            lost = Lost(since_s=960.0, attempts=4, why="connection refused")
            app.hear(LinkChanged(lost, 1000.0))
        for key in keys:
            await pilot.press(key)
        await at_rest(app, pilot)

    assert snap_compare(app, terminal_size=size, run_before=look)
