"""When things will be done: the work left, over the speed of late. Pure.

Two figures, as likely as not (p50) and almost surely (p90), from the spread of the speeds of the
last steps. None where the work or the speed is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_tui.daemon.figures import Figures

SHARE_P90_SLOW = 0.10  # nine steps in ten were faster than this quantile
AVERAGED_STEPS = 16  # over many steps luck evens out: the spread of a mean shrinks by its root


@dataclass(frozen=True, slots=True)
class Estimate:
    """`queue_s`: [p50, p90] until everything that waits is trained."""

    job_s: float | None
    queue_s: list[float] | None


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second: median, and the slow end that nine in ten windows beat."""

    median: float
    slow: float


def speed(rates: Sequence[float]) -> Speed | None:
    if not rates:
        return None
    ordered = sorted(rates)
    median = ordered[len(ordered) // 2]
    slowest = ordered[int(len(ordered) * SHARE_P90_SLOW)]
    slow = median - (median - slowest) / math.sqrt(AVERAGED_STEPS)
    return Speed(median, max(slow, slowest))


def estimate(figures: Figures, waiting_tokens: Sequence[int | None]) -> Estimate:
    """`waiting_tokens`: per waiting job over all its epochs, None where unknown."""
    job_s = job_seconds(figures)
    pace = speed(figures.token_rates)
    if pace is None or any(tokens is None for tokens in waiting_tokens):
        return Estimate(job_s, None)
    tokens = sum(found for found in waiting_tokens if found is not None)
    first_s = job_s or 0.0
    p50 = first_s + tokens / pace.median
    p90 = first_s * pace.median / pace.slow + tokens / pace.slow
    return Estimate(job_s, [round(p50, 1), round(p90, 1)])


def job_seconds(figures: Figures) -> float | None:
    """Until the job in hand is trained."""
    if figures.job_id is None or not figures.job_steps or not figures.step_s:
        return None
    return round(max(0, figures.job_steps - figures.job_step) * figures.step_s, 1)
