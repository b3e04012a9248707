"""A job as the API shows it: what the queue says of it, and what training makes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainer_tui.daemon.eta import NOW_S, Pace, Span
from trainer_tui.queue.check import is_outdated
from trainer_tui.queue.job import Job, JobError
from trainer_tui.queue.line import Work
from trainer_tui.queue.waiting import NEXT, time_or_none, why_waiting
from trainer_tui.safety.quiet_hours import QuietHours

TRAINED = "trained, waits for its checkpoint"


@dataclass(frozen=True, slots=True)
class Context:
    """What a view depends on besides the job. `fractions`: of the jobs in `processing/`, how much
    is trained; `trained`: those that only wait for their checkpoint. `in_hand`: the job that the
    trainer works on, and `in_hand_s` until it is done; `begun_s`: until all in `processing/` are.
    `not_training`: why nothing is trained. `key`: see `queue/check.py`.
    """

    now: datetime
    quiet: QuietHours | None = None
    not_training: str = ""
    pace: Pace | None = None
    epochs: int = 1
    in_hand_s: Span | None = None
    in_hand: int | None = None
    begun_s: Span | None = None
    fractions: dict[int, float | None] = field(default_factory=dict)
    trained: frozenset[int] = frozenset()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a waiting job stands: how many are ahead of it, in `processing/` too, and the work of
    the waiting ones among them. `place`: 1 is next."""

    place: int
    ahead: int
    work: Work


def views(
    jobs: Iterable[Job],
    standing: Standing | None,
    context: Context,
    error_of: Callable[[Job], JobError | None],
) -> Iterator[dict[str, Any]]:
    """Views of jobs that follow each other as in `Queue.jobs`.

    Args:
        standing: of the first waiting one among them; None when there is none.
    """
    for job in jobs:
        if job.state == "waiting":
            assert standing is not None
            yield view(job, standing, context, None)
            own = Work(job.meta.tokens, int(not job.meta.tokens))
            standing = Standing(standing.place + 1, standing.ahead + 1, standing.work + own)
        else:
            yield view(job, None, context, error_of(job))


def view(
    job: Job, standing: Standing | None, context: Context, error: JobError | None
) -> dict[str, Any]:
    """One job; `standing` when it waits."""
    if standing is not None:
        ahead = max(0, standing.ahead - len(context.trained))
        why = why_waiting(job, ahead, context.now, context.quiet, context.not_training)
        if why == NEXT and is_outdated(job.meta, context.key):
            why = "its data report is made again: the model or the settings have changed"
        start = _after(context.begun_s, _tokens(standing.work, context.epochs), context)
        end = _after(start, tokens_of(job, context.epochs), context)
        return _view(job, context, standing.place, why, start, end, None)
    if job.state == "processing":
        if job.id in context.trained:
            return _view(job, context, None, TRAINED, NOW_S, NOW_S, None)
        if job.id == context.in_hand:
            return _view(job, context, None, "", NOW_S, context.in_hand_s, None)
        # Begun, and not gone on with yet: after a restart.
        end = _after(context.in_hand_s, tokens_of(job, context.epochs), context)
        return _view(job, context, None, "", NOW_S, end, None)
    return _view(job, context, None, "", None, None, error)


def _after(start: Span | None, tokens: int | None, context: Context) -> Span | None:
    if tokens == 0:
        return start
    return context.pace.after(start, tokens) if context.pace else None


def _tokens(work: Work, epochs: int) -> int | None:
    return None if work.unknown else work.tokens * epochs


def tokens_of(job: Job, epochs: int) -> int | None:
    """All that training it will take; None when it was not counted."""
    return job.meta.tokens * epochs if job.meta.tokens else None


def _time(text: str | None) -> str | None:
    """A hand may have written something else."""
    return text if time_or_none(text) is not None else None


def _view(
    job: Job,
    context: Context,
    place: int | None,
    why: str,
    start: Span | None,
    end: Span | None,
    error: JobError | None,
) -> dict[str, Any]:
    meta = job.meta
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "priority": job.priority,
        "place": place,
        "rows": meta.rows,
        "kept_rows": meta.kept_rows,
        "rejected_rows": meta.rejected_rows,
        "bytes": meta.bytes,
        "tokens": meta.tokens,
        "supervised_tokens": meta.supervised_tokens,
        "steps": meta.steps,
        "verdict": meta.verdict,
        "summary": meta.summary,
        "attempts": job.attempts_without_progress,
        "held": meta.held,
        "not_before": _time(meta.not_before),
        "added_at": meta.added_at or None,
        "added_by": meta.added_by,
        "started_at": meta.started_at,
        "finished_at": _time(meta.finished_at),
        "seconds": meta.seconds,
        "fraction": _fraction(job, context),
        "eta_s": _rounded(start, end, 0),
        "eta_p90_s": _rounded(start, end, 1),
        "why_waiting": why,
        "error": error_view(error),
        "val_before": meta.val_before,
        "val_after": meta.val_after,
        "parent_job": meta.parent_job,
        "trained_rows": meta.trained_rows or None,
        "trained_tokens": meta.trained_tokens or None,
    }


def _rounded(start: Span | None, end: Span | None, which: int) -> list[float] | None:
    """[it starts, it is done] in seconds from now; `which`: 0 for p50, 1 for p90."""
    if start is None or end is None:
        return None
    return [round(start[which], 1), round(end[which], 1)]


def _fraction(job: Job, context: Context) -> float | None:
    match job.state:
        case "processing":
            return context.fractions.get(job.id)
        case "completed":
            return 1.0
        case "failed":
            return job.meta.skipped_fraction
        case "waiting":
            return job.meta.skipped_fraction


def error_view(error: JobError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "class": error.error_class,
        "message": error.message,
        "hint": error.hint,
        "line": error.line or None,
        "retryable": error.retryable,
    }
