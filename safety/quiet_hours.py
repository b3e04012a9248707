"""Hours of the day in which no file begins, as `intake.quiet_hours` says them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_CLOCK = r"([01]?\d|2[0-3]):([0-5]\d)"
_DASHES = "[-\u2010\u2011\u2012\u2013\u2014\u2212]"  # what keyboards and editors make of a hyphen
_HOURS = re.compile(rf"{_CLOCK}\s*{_DASHES}\s*{_CLOCK}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Minutes since midnight, local time; `start` > `end` spans midnight."""

    start: int
    end: int

    def holds_at(self, now: datetime) -> bool:
        minute = now.hour * 60 + now.minute
        if self.start <= self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    @property
    def end_text(self) -> str:
        return f"{self.end // 60:02d}:{self.end % 60:02d}"


def parse(text: str) -> QuietHours | None:
    """`22:00-06:30`, or None for an empty text.

    Raises:
        ValueError: it is no span of time, or one that never holds.
    """
    if not text.strip():
        return None
    found = _HOURS.fullmatch(text.strip())
    if found is None:
        raise ValueError("is no span of time; write it as 22:00-06:30")
    hours = [int(part) for part in found.groups()]
    quiet = QuietHours(hours[0] * 60 + hours[1], hours[2] * 60 + hours[3])
    if quiet.start == quiet.end:
        raise ValueError("begins and ends at the same time, so it never holds")
    return quiet
