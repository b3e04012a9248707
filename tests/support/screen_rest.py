"""When a screen has come to rest: what it shows no longer changes, however slow the machine."""

from __future__ import annotations

import time
from typing import Any

LOOKS = 4
BETWEEN_S = 0.1
DEADLINE_S = 20.0


async def at_rest(app: Any, pilot: Any) -> None:
    """Wait until nothing is left to paint and four looks in a row saw the same picture."""
    deadline = time.monotonic() + DEADLINE_S
    before, same = None, 0
    while same < LOOKS:
        assert time.monotonic() < deadline, f"never at rest within {DEADLINE_S} s"
        await pilot.pause(BETWEEN_S)
        seen = app.export_screenshot()
        busy = app._soon or bool(app._touched)
        same = same + 1 if seen == before and not busy else 0
        before = seen
