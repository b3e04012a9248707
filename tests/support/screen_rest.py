"""When a screen has come to rest: what it shows no longer changes, however slow the machine."""

from __future__ import annotations

import time
from typing import Any

LOOKS = 3
BETWEEN_S = 0.06
DEADLINE_S = 30.0


async def at_rest(app: Any, pilot: Any) -> None:
    """Wait until nothing is being read or left to paint, a resize has been drawn again, and three
    looks in a row saw the same cells."""
    deadline = time.monotonic() + DEADLINE_S
    before, same = None, 0
    while same < LOOKS:
        assert time.monotonic() < deadline, f"never at rest within {DEADLINE_S} s"
        await pilot.pause(BETWEEN_S)
        seen = shown(app)
        same = same + 1 if seen == before and not busy(app) else 0
        before = seen


def shown(app: Any) -> list[Any]:
    """The cells of the screen on top, with their styles."""
    return [strip._segments for strip in app.screen._compositor.render_strips()]


def busy(app: Any) -> bool:
    """Whether more is to come: a reading, a painting, a resize that is not at rest yet."""
    reading = app.feed._reading is not None and not app.feed._reading.done()
    looking = any(w.group in ("look", "doctor") and w.is_running for w in app.workers)
    resting = app._at_rest is not None and app._at_rest._task and not app._at_rest._task.done()
    return bool(app._soon or app._touched or app._pressed or reading or resting or
                (looking and len(app.screen_stack) == 1))  # fmt: skip
