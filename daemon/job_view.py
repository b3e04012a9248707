"""A job as the API shows it: what the queue says of it, and what training makes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainer_tui.daemon.eta import Speed
from trainer_tui.queue.job import Job, JobError
from trainer_tui.queue.waiting import QuietHours, why_waiting

TRAINED = "trained, waits for its checkpoint"


@dataclass(frozen=True, slots=True)
class Context:
    """What a view depends on besides the job. `fractions`: of the jobs in `processing/`, how much
    is trained; `trained`: those that only wait for their checkpoint. `in_hand_s`: until the job
    in hand is done. `not_training`: why nothing is trained.
    """

    now: datetime
    quiet: QuietHours | None = None
    not_training: str = ""
    speed: Speed | None = None
    epochs: int = 1
    in_hand_s: float | None = None
    fractions: dict[int, float | None] = field(default_factory=dict)
    trained: frozenset[int] = frozenset()


def views(
    jobs: Iterable[Job], context: Context, error_of: Callable[[Job], JobError | None]
) -> Iterator[dict[str, Any]]:
    """Views of jobs in the order of `Queue.jobs`: what is ahead of each is counted on the way."""
    ahead, place = 0, 0
    start_s = end_s = context.in_hand_s
    for job in jobs:
        if job.state == "processing":
            ahead += 1
            why = TRAINED if job.id in context.trained else ""
            yield _view(job, context, None, why, (0.0, start_s), None)
        elif job.state == "waiting":
            place += 1
            start_s = end_s
            end_s = _after(start_s, job, context)
            why = why_waiting(job, ahead, context.now, context.quiet, context.not_training)
            yield _view(job, context, place, why, (start_s, end_s), None)
            ahead += 1
        else:
            yield _view(job, context, None, "", (None, None), error_of(job))


def _after(start_s: float | None, job: Job, context: Context) -> float | None:
    tokens = tokens_of(job, context.epochs)
    if start_s is None or context.speed is None or tokens is None:
        return None
    return start_s + tokens / context.speed.median


def tokens_of(job: Job, epochs: int) -> int | None:
    """All that training it will take; None when it was not counted."""
    return job.meta.tokens * epochs if job.meta.tokens else None


def _view(
    job: Job,
    context: Context,
    place: int | None,
    why: str,
    eta_s: tuple[float | None, float | None],
    error: JobError | None,
) -> dict[str, Any]:
    meta = job.meta
    started, ends = eta_s
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
        "not_before": meta.not_before,
        "added_at": meta.added_at or None,
        "added_by": meta.added_by,
        "started_at": meta.started_at,
        "finished_at": meta.finished_at,
        "seconds": meta.seconds,
        "fraction": _fraction(job, context),
        "eta_s": [round(started, 1), round(ends, 1)]
        if started is not None and ends is not None
        else None,
        "why_waiting": why,
        "error": error_view(error),
        "val_before": meta.val_before,
        "val_after": meta.val_after,
        "parent_job": meta.parent_job,
    }


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
