"""Keeping the queue true: what a person did to its directories by hand, and what has had its time.

Invariant: the directories win. What was moved is where it was moved to, what was deleted is gone,
what appeared is there; each is said in a sentence, and none is an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from trainer_tui.queue import scan
from trainer_tui.queue.job import COMPLETED, FAILED, Job, JobError
from trainer_tui.queue.scan import Finding
from trainer_tui.queue.waiting import time_or_none
from trainer_tui.safety.config import Retention

if TYPE_CHECKING:
    from trainer_tui.queue.store import Queue


def reconcile(queue: Queue) -> list[Finding]:
    """See `Queue.reconcile`; called with the queue's lock held."""
    marks = scan.folder_marks(queue.folder)
    if marks is None or marks != queue.folder_marks:
        queue.lasting = _compare(queue)
        shut = any(finding.hides for finding in queue.lasting)
        queue.folder_marks = None if shut else marks  # it may open again without a mark
    found = [*queue.findings, *queue.lasting]
    queue.findings.clear()
    return _only_new(queue, found + _check_processing(queue))


def _compare(queue: Queue) -> list[Finding]:
    """Every directory against what is known of it."""
    findings = []
    seen: set[int] = set()
    for found in scan.directories(queue.folder):
        if isinstance(found, Finding):
            findings.append(found)
            continue
        known = queue.index.by_id.get(found.name.id)
        if found.name.id in seen:
            findings.append(_twice(found, known))
            continue
        if known is not None and _is_copy(queue, found, known):
            findings.append(_twice(found, known))
            continue
        seen.add(found.name.id)
        if known is None or not _same_place(found, known):
            findings += _take_over(queue, found, known)
    hidden = {finding.hides for finding in findings}
    for job_id in queue.index.by_id.keys() - seen:
        gone = queue.index.by_id[job_id]
        if gone.folder in hidden:
            continue
        queue.note_gone(job_id)
        text = f"job {job_id} ({gone.name}) was deleted by hand from {gone.folder}"
        findings.append(Finding("vanished", job_id, text))
    return findings


def _is_copy(queue: Queue, found: scan.Found, known: Job) -> bool:
    """Elsewhere than known while the known place is still there: somebody made a copy."""
    return not _same_place(found, known) and queue.path(known).is_dir()


def _same_place(found: scan.Found, known: Job) -> bool:
    name = found.name
    return (found.folder, name.position, name.safe_name) == (
        known.folder,
        known.position,
        known.safe_name,
    )


def _twice(found: scan.Found, known: Job | None) -> Finding:
    where = f"{found.folder} and {known.folder}" if known else found.folder
    text = f"two directories carry job {found.name.id} ({where}); the second is left alone"
    return Finding("twice", found.name.id, text)


def _take_over(queue: Queue, found: scan.Found, known: Job | None) -> list[Finding]:
    job, problem = scan.read_job(queue.folder, found)
    queue.note_found(job)
    if known is None:
        text = f"job {job.id} ({job.name}) appeared in {job.folder}"
        said = Finding("appeared", job.id, text)
    elif known.folder != job.folder:
        text = f"job {job.id} ({job.name}) was moved by hand from {known.folder} to {job.folder}"
        said = Finding("moved", job.id, text)
    else:
        said = Finding("moved", job.id, f"job {job.id} ({job.name}) was renamed by hand")
    return [said] if problem is None else [said, problem]


def _check_processing(queue: Queue) -> list[Finding]:
    """Data in `processing/` is hashed again whenever `stat` says that it may have changed."""
    findings = []
    for job in queue.processing():
        mark = scan.data_mark(job, queue.folder)
        if mark is not None and queue.data_marks.get(job.id) == mark:
            continue
        found = scan.check_data(job, queue.folder)
        if found is None and mark is not None:
            queue.data_marks[job.id] = mark
        elif found is not None:
            findings.append(found)
    return findings


def _only_new(queue: Queue, findings: list[Finding]) -> list[Finding]:
    """A lasting oddity is said once, and again only after it was gone."""
    new = [finding for finding in findings if finding not in queue.said]
    queue.said = frozenset(findings)
    return new


def error_of(finding: Finding) -> JobError:
    """What to fail a job with whose data was edited or lost while it was in `processing/`."""
    return JobError(
        error_class="data_changed",
        message=finding.text,
        hint="add the file again as a new one",
    )


def expired(jobs: Sequence[Job], retention: Retention, now: datetime) -> list[Job]:
    """Completed and failed jobs beyond `completed_jobs` in number, `completed_days` in age or
    `completed_gb` in size; the newest of each is not too large."""
    found = []
    for folder in (COMPLETED, FAILED):
        kept, size = 0, 0
        for job in jobs:  # newest first
            if job.folder != folder:
                continue
            kept, size = kept + 1, size + job.meta.bytes
            large = kept > 1 and size > retention.completed_gb * 1e9
            if (
                large
                or kept > retention.completed_jobs
                or _older(job, retention.completed_days, now)
            ):
                found.append(job)
    return found


def _older(job: Job, days: int, now: datetime) -> bool:
    finished = time_or_none(job.meta.finished_at)
    return finished is not None and now - finished > timedelta(days=days)
