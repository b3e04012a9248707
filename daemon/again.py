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
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.manifest import LedgerEntry


def train_again(queue: Queue, job_id: int, added_by: str, *, after_restore: bool = False) -> Job:
    """Admit a copy of a completed job; one that waits already is returned as it is.

    Args:
        after_restore: a restore took it out of the model. It is withdrawn should another one
            bring it back.

    Raises:
        NotFound: there is no such job.
        Refused: it is not completed.
    """
    job = queue.get(job_id)
    if job.folder != COMPLETED:
        raise Refused(f"job {job_id} ({job.name}) is {job.state}, not completed")
    for other in (*queue.waiting(), *queue.processing()):
        if other.meta.parent_job == job_id:
            return other if after_restore else queue.keep(other.id)
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
            after_restore=after_restore,
        )
        durable.write_new(staged / META_NAME, encode_meta(meta))
        return queue.admit(staged, job.priority, added_by=added_by, again=True, parent_job=job_id)
    except BaseException:
        queue.discard(staged)
        raise


def lost(queue: Queue, entries: Iterable[LedgerEntry]) -> tuple[list[Job], list[str]]:
    """The completed jobs of `entries`, in their order; and the names of those whose job is gone,
    so that nothing is left to train. One that waits or is trained already is neither."""
    jobs = {job.id: job for job in queue.jobs()}
    found, gone = [], []
    for entry in entries:
        job = jobs.get(entry.job_id)
        if job is None:
            gone.append(f"#{entry.job_id} {entry.name}")
        elif job.folder == COMPLETED:
            found.append(job)
    return found, gone
