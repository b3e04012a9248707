"""When things will be done: the tokens left, over the speed of late. Pure.

Two figures, as likely as not (p50) and almost surely (p90), from the spread of the speeds of the
last steps. What evaluations and commits cost is in both, as the share of the clock that the last
steps did not have. None where the work or the speed is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_tui.daemon.figures import Figures
from trainer_tui.queue.line import Work

SHARE_P90_SLOW = 0.10  # nine steps in ten were faster than this quantile
AVERAGED_STEPS = 16  # over many steps luck evens out: the spread of a mean shrinks by its root
NOW_S = (0.0, 0.0)
Span = tuple[float, float]  # seconds: p50, p90


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of training: median, and the slow end that nine in ten windows beat."""

    median: float
    slow: float


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of the clock for a token, evaluations and commits included."""

    p50_s: float
    p90_s: float

    def after(self, start: Span | None, tokens: int | None) -> Span | None:
        """When so many tokens more are done; None when one of the two is unknown."""
        if start is None or tokens is None:
            return None
        return start[0] + tokens * self.p50_s, start[1] + tokens * self.p90_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds [p50, p90]: until the job in hand, and until everything that waits is trained."""

    job_s: Span | None
    queue_s: list[float] | None


def speed(rates: Sequence[float]) -> Speed | None:
    if not rates:
        return None
    ordered = sorted(rates)
    median = ordered[len(ordered) // 2]
    slowest = ordered[int(len(ordered) * SHARE_P90_SLOW)]
    slow = median - (median - slowest) / math.sqrt(AVERAGED_STEPS)
    return Speed(median, max(slow, slowest))


def pace(figures: Figures) -> Pace | None:
    found = speed(figures.token_rates)
    if found is None:
        return None
    return Pace(figures.overhead / found.median, figures.overhead / found.slow)


def estimate(figures: Figures, waiting: Work, epochs: int) -> Estimate:
    """`waiting`: of everything that waits, for one epoch."""
    job_s, found = job_span(figures), pace(figures)
    span = and_then(found, job_s or NOW_S, waiting, epochs) if found else None
    return Estimate(job_s, [round(seconds, 1) for seconds in span] if span else None)


def and_then(at: Pace | None, start: Span | None, work: Work, epochs: int) -> Span | None:
    """When this work is done, too, begun at `start`; None: nobody knows."""
    if work == Work():
        return start
    if at is None or work.unknown:
        return None
    return at.after(start, work.tokens * epochs)


def job_span(figures: Figures) -> Span | None:
    """Until the job in hand is trained."""
    step_s = figures.usual_step_s
    if figures.job_id is None or not figures.job_steps or not step_s:
        return None
    p50_s = max(0, figures.job_steps - figures.job_step) * step_s * figures.overhead
    found = speed(figures.token_rates)
    p90_s = p50_s * found.median / found.slow if found else p50_s
    return round(p50_s, 1), round(p90_s, 1)
