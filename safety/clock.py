"""The one clock: wall time for people, monotonic time for waiting and measuring."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_iso() -> str:
    """Wall time in UTC, ISO 8601 with milliseconds and `Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_s() -> float:
    """Wall time, seconds since 1970. Never used to order or to time anything."""
    return time.time()


def monotonic_s() -> float:
    """Seconds on a clock that never goes back (it stands still while a machine sleeps)."""
    return time.monotonic()


def monotonic_ns() -> int:
    return time.monotonic_ns()
