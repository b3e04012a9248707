"""A completed job queued once more, as a new job that shares its data.

Needed when its work was lost with a damaged checkpoint, and when a person wants a file back that
a restore took out of the model. The old job stays as history.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec

from trainer_tui.queue.job import (
    COMPLETED,
    DATA_NAME,
    META_NAME,
    REJECTS_NAME,
    REPORT_NAME,
    Job,
    Source,
    encode_meta,
)
from trainer_tui.queue.store import Queue
from trainer_tui.safety import durable
from trainer_tui.safety.errors import Refused, TrainerTuiError


def train_again(queue: Queue, job_id: int, added_by: str) -> Job:
    """Admit a copy of a completed job; one that waits already is returned as it is.

    Raises:
        NotFound: there is no such job.
        Refused: it is not completed.
    """
    job = queue.get(job_id)
    if job.folder != COMPLETED:
        raise Refused(f"job {job_id} ({job.name}) is {job.state}, not completed")
    for other in (*queue.waiting(), *queue.processing()):
        if other.meta.parent_job == job_id:
            return other
    folder = queue.path(job)
    staged = queue.folder / f"{durable.STAGING_PREFIX}again-{job_id}-{secrets.token_hex(4)}"
    durable.make_directory(staged)
    try:
        for name in (DATA_NAME, REPORT_NAME, REJECTS_NAME):
            if (folder / name).exists():
                durable.share(folder / name, staged / name)
        meta = msgspec.structs.replace(
            job.meta,
            source=Source(),
            attempts=(),
            started_at=None,
            finished_at=None,
            seconds=None,
            val_before=None,
            val_after=None,
            skipped_fraction=None,
        )
        durable.write_new(staged / META_NAME, encode_meta(meta))
        return queue.admit(staged, job.priority, added_by=added_by, again=True, parent_job=job_id)
    except BaseException:
        queue.discard(staged)
        raise


def back_to_the_queue(
    queue: Queue, job_ids: Iterable[int], added_by: str
) -> tuple[list[Job], list[str]]:
    """`train_again` for what a restore took out of the model, in the order of `job_ids`.

    Returns:
        The jobs that wait now, and a sentence for each one that could not be queued.
    """
    waiting, problems = [], []
    for job_id in job_ids:
        try:
            waiting.append(train_again(queue, job_id, added_by))
        except TrainerTuiError as problem:
            problems.append(f"#{job_id} stays out of the queue: {problem.message}")
    return waiting, problems


def lost(queue: Queue, committed_at: str) -> list[Job]:
    """Completed jobs that ended after the checkpoint in use was made, oldest first: it cannot
    hold them. Empty unless newer checkpoints were damaged."""
    found = [
        job
        for job in queue.jobs()
        if job.folder == COMPLETED and (job.meta.finished_at or "") > committed_at
    ]
    return sorted(found, key=lambda job: (job.meta.finished_at or "", job.id))
