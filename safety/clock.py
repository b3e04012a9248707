"""The one clock: wall time for people, monotonic time for waiting and measuring."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


def boot_id() -> str:
    """Of the machine since it was started: monotonic times of another boot mean nothing. Empty
    where the system does not tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
