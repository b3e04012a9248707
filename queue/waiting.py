"""Why a waiting job waits, and whether it may start now. Pure: time comes in as an argument."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from trainer_tui.queue.job import Job
from trainer_tui.safety.quiet_hours import QuietHours

NEXT = "next"
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def parse_time(text: str) -> datetime:
    """An ISO time; one without a zone is local. Raises ValueError, also for one so early or late
    that it has no local time."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except OverflowError:
        raise ValueError(f"{text} is beyond every calendar") from None


def time_or_none(text: str | None) -> datetime | None:
    """Of a `meta.json`, which a hand may have written: what is no time counts as none."""
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        return None


def coming_time(text: str, now: datetime) -> datetime:
    """The same, or `22:00` for when a clock here next says so. Raises ValueError."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return parse_time(text)
    here = now.astimezone()
    at = here.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
    return at if at > here else at + timedelta(days=1)


def startable(job: Job, now: datetime, quiet: QuietHours | None = None) -> bool:
    """Whether a waiting job may be claimed at `now` (any zone)."""
    return _own_reason(job, now, quiet) is None


def _own_reason(job: Job, now: datetime, quiet: QuietHours | None) -> str | None:
    if job.meta.held:
        return f"held: trainer-tui queue unhold {job.id}"
    at = time_or_none(job.meta.not_before)
    if at is not None and now < at:
        return f"not before {at:%Y-%m-%d %H:%M}"
    if quiet is not None and quiet.holds_at(now.astimezone()):
        return f"quiet hours until {quiet.end_text}"
    return None


def why_waiting(
    job: Job,
    ahead: int,
    now: datetime,
    quiet: QuietHours | None = None,
    training: str = "",
) -> str:
    """One short sentence for a waiting job.

    Args:
        ahead: how many jobs come before it, those in processing included.
        training: why nothing at all is trained now (paused, no model, …); empty when it is.
    """
    own = _own_reason(job, now, quiet)
    if own is not None:
        return own
    if training:
        return training
    if ahead == 0:
        return NEXT
    return f"{ahead} {'file is' if ahead == 1 else 'files are'} ahead"


def first_startable(
    jobs: Iterable[Job], now: datetime, quiet: QuietHours | None = None
) -> Job | None:
    """The first of `jobs`, which come in training order, that may be claimed at `now`."""
    if quiet is not None and quiet.holds_at(now.astimezone()):
        return None
    return next((job for job in jobs if startable(job, now, quiet)), None)
