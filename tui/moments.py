"""A moment as a person writes it: `22:00`, `2h`, `30m`, `2026-12-01 08:00`. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from trainer_tui.safety.errors import Refused

_SPAN = re.compile(r"\+?(\d{1,5})\s*([mhd])")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_UNIT_S = {"m": 60, "h": 3600, "d": 86_400}
WORDS = "22:00, 30m, 2h, 3d or 2026-12-01 08:00"


def parse(text: str, now: datetime) -> datetime | None:
    """The next such moment after `now` (aware); None for empty text.

    Raises:
        Refused: it is no such moment, or it is past.
    """
    text = text.strip().lower()
    if not text:
        return None
    if found := _SPAN.fullmatch(text):
        return now + timedelta(seconds=int(found[1]) * _UNIT_S[found[2]])
    try:
        if found := _CLOCK.fullmatch(text):
            moment = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
            return moment if moment > now else moment + timedelta(days=1)
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        raise Refused(f"{text!r} is no time", WORDS) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise Refused(f"{text!r} is past", WORDS)
    return moment
