"""The screen as it looks: nine states at five sizes, 45 pictures, and some dialogs and palettes.

`--snapshot-update` after a change that was looked at. A picture is an SVG by the extension of
pytest-textual-snapshot;
one screen per state is resized through the sizes, because a start costs more than a
picture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_textual_snapshot import SVGImageExtension
from screen_rest import at_rest

from trainer_tui.safety import clock
from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.glyphs import ASCII, UNICODE
from trainer_tui.tui.reduce import LinkChanged
from trainer_tui.tui.remote import Remote
from trainer_tui.tui.view import Live, Lost

NO_ESTIMATE = {"eta_job_s": None, "eta_queue_s": None}


def resting(state: Any) -> None:
    """A machine that trains nothing now."""
    state.live["gpu"] = {"utilisation_percent": 0, "temperature_c": 38, "power_w": 71.0}
    state.live["training"] = {"last_sample_age_s": 700.0, "phase": None, "unsaved_steps": 0}


def paused(state: Any) -> None:
    resting(state)
    state.state, state.intent, state.reason = "paused", "pause", "asked by ada"


def degraded(state: Any) -> None:
    resting(state)
    state.state, state.intent = "degraded", "degraded"
    state.reason = "the loss was not finite in 5 steps"
    state.said("error", "training", "given up: the loss was not finite in 5 steps")
    state.events[0]["data"] = {"step": 18_420}


def no_gpu(state: Any) -> None:
    state.gpus = 0


def empty(state: Any) -> None:
    state.jobs, state.versions, state.points, state.val, state.events = [], [], [], [], []
    state.state, state.step = "idle", None
    resting(state)
    state.model["latest_version"] = None
    nothing = ("loss", "loss_ema", "val_loss", "best_val_loss", "checkpoint", "tokens_seen")
    state.live["training"] |= NO_ESTIMATE | dict.fromkeys((*nothing, "last_sample_age_s"))


def idle(state: Any) -> None:
    resting(state)
    state.jobs = [job for job in state.jobs if job["state"] == "completed"]
    state.state = "idle"
    state.live["training"] |= NO_ESTIMATE


def thousand_jobs(state: Any) -> None:
    state.jobs = sys.modules["screen_fake_daemon"].many_jobs(1000)
    state._replace()


def incident(state: Any) -> None:
    resting(state)
    state.state = "waiting"
    state.reason = "the trainer ended: out of memory on the GPU; again in 5 s"
    state.said("error", "trainer", "the trainer ended: out of memory on the GPU; a new one goes on")
    state.events[0]["data"] = {"incident": "20261124T120400-1a2b", "step": 18_420}
    state.incidents = [
        {"id": "20261124T120400-1a2b", "class": "cuda_oom", "at": "2026-11-24T12:04:00.000Z",
         "text": "out of memory on the GPU", "suggestion": "lower micro_batch_tokens",
         "done": "a new trainer goes on", "wait_status": 1, "files": ["error.json", "stack.txt"],
         "last_words": "torch.OutOfMemoryError: CUDA out of memory.", "job": 31,
         "global_step": 18_420, "phase": "micro-step"}
    ]  # fmt: skip


def training(state: Any) -> None:
    pass


def unsaved(state: Any) -> None:
    state.jobs[0] |= {"fraction": 1.0, "why_waiting": "trained, waits for its checkpoint"}
    state.said("info", "checkpoint", "checkpoint-12000: 1.2 GB in 3.1 s")
    state.said("info", "training", "training is to pause")
    state.events[0]["data"] = {"intent": "pause", "step": 15_000}


def lost(state: Any) -> None:
    """The rest is done by `begin`, when all has been read."""


STATES = (idle, training, paused, incident, degraded, no_gpu, lost, empty, thousand_jobs)
SIZES = ((60, 15), (80, 24), (120, 40), (160, 48), (200, 60))
KEYS = {incident: ("4",), degraded: ("4",)}


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock and what the link carries, both of which the status line shows."""
    monkeypatch.setattr(clock, "monotonic_s", lambda: 1000.0)
    steady = property(lambda _: 700.0, lambda _, value: None)
    monkeypatch.setattr(TrainerApp, "bytes_per_s", steady, raising=False)


async def begin(app: Any, pilot: Any, prepare: Any) -> None:
    """Wait until the whole snapshot has been read; a daemon to be lost is lost then."""
    end_s = time.monotonic() + 30
    while not isinstance(app.view.link, Live) or app.view.disk_left_s is None:
        assert time.monotonic() < end_s, "never live"
        app.feed.again("disk")
        await pilot.pause(0.02)
    if prepare is lost:  # once everything has been read and painted
        await wide_enough(app, pilot)
        await at_rest(app, pilot)
        app.workers.cancel_group(app, "feed")
        await pilot.pause()
        app.hear(LinkChanged(Lost(since_s=960.0, attempts=4, why="connection refused"), 1000.0))


async def wide_enough(app: Any, pilot: Any) -> None:
    """A wide screen reads the series of its second chart, too."""
    end_s = time.monotonic() + 30
    while app.feed.second_chart and "grad_norm" not in app.view.curves:
        assert time.monotonic() < end_s, "the second chart's series never came"
        app.feed.again("metrics")
        await pilot.pause(0.02)


@pytest.mark.parametrize("prepare", STATES, ids=[state.__name__ for state in STATES])
async def test_every_state_at_every_size(prepare: Any, server: Any, snapshot: Any) -> None:
    prepare(server.state)
    pictures = snapshot.use_extension(SVGImageExtension)
    app = TrainerApp(Remote(server.path), glyphs=UNICODE)
    async with app.run_test(size=SIZES[-1]) as pilot:
        await begin(app, pilot, prepare)
        await wide_enough(app, pilot)
        for key in KEYS.get(prepare, ()):
            await pilot.press(key)
        different = []
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            await at_rest(app, pilot)
            if app.export_screenshot() != pictures(name=f"{width}x{height}"):
                different.append(f"{width}x{height}")
        assert not different, "look at them, then --snapshot-update"


Shot = tuple[str, tuple[int, int], Callable[[Any], None], list[str], dict[str, Any]]
SHOTS: list[Shot] = [
    ("tiny", (40, 12), training, [], {}),
    ("flat", (120, 14), training, [], {}),
    ("versions", (80, 24), paused, ["v"], {}),
    ("machine", (80, 24), no_gpu, ["5"], {}),
    ("roll-back", (80, 24), training, ["R"], {}),
    ("stop-menu", (80, 24), training, ["s"], {}),
    ("kill", (80, 24), training, ["s", "x"], {}),
    ("kill-narrow", (60, 15), training, ["s", "x"], {}),
    ("stop-tiny", (40, 12), training, ["s"], {}),
    ("help", (80, 24), training, ["?"], {}),
    ("light", (80, 24), training, ["1", "left"], {"palette": "light"}),
    ("ascii", (80, 24), training, [], {"glyphs": ASCII, "palette": "mono"}),
    ("ascii-dialog", (60, 15), training, ["s"], {"glyphs": ASCII, "palette": "mono"}),
    ("sixteen-colours", (120, 40), training, [], {"palette": "ansi"}),
    ("unsaved", (160, 48), unsaved, [], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "prepare", "keys", "more"), SHOTS, ids=[name for name, *_ in SHOTS]
)
def test_picture(
    name: str, size: tuple[int, int], prepare: Any, keys: list[str], more: Any,
    snap_compare: Any, server: Any,
) -> None:  # fmt: skip
    prepare(server.state)
    app = TrainerApp(Remote(server.path), **({"glyphs": UNICODE} | more))

    async def look(pilot: Any) -> None:
        await begin(app, pilot, prepare)
        await at_rest(app, pilot)
        for key in keys:
            depth = len(app.screen_stack)
            await pilot.press(key)
            if key in "Rs?":
                end_s = time.monotonic() + 30
                while len(app.screen_stack) == depth:
                    assert time.monotonic() < end_s, "it never asked"
                    await pilot.pause(0.02)
        await at_rest(app, pilot)

    assert snap_compare(app, terminal_size=size, run_before=look)
