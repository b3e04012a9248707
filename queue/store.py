"""The queue: jobs as directories, every change of state or order one atomic rename.

Invariant: a job is in exactly one folder at every moment, also after a power cut; an attempt is on
disk before the job it counts for may start; what is acknowledged is on disk. One process changes
the queue (the daemon, which holds its lock for life); its threads may call anything here.

Every change that a client asks for takes `if_revision`, the revision it was based on: when a job
it names has changed since, it is refused as Stale and nothing is done.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from trainer_tui.queue import check, known, row_hashes
from trainer_tui.queue.job import (
    COMPLETED,
    ERROR_NAME,
    FAILED,
    META_NAME,
    PROCESSING,
    Attempt,
    Job,
    JobError,
    decode_meta,
    encode_error,
    encode_meta,
    parse_directory_name,
    read_error,
    with_number,
)
from trainer_tui.queue.moves import QueueMoves, check_priority
from trainer_tui.queue.numbering import NEXT_ID_NAME
from trainer_tui.queue.order import GAP
from trainer_tui.queue.scan import Finding
from trainer_tui.queue.upkeep import expired, reconcile
from trainer_tui.queue.waiting import coming_time, parse_time
from trainer_tui.safety import durable
from trainer_tui.safety.config import Retention
from trainer_tui.safety.errors import NotFound, Refused
from trainer_tui.safety.quiet_hours import QuietHours
from trainer_tui.safety.text import safe_name
from trainer_tui.safety.workspace import PRIORITIES, QUEUE_FOLDERS

TRASH_PREFIX = "job."


class Duplicate(Refused):
    """The content is queued, trained or failed already; `job_id` says as which job."""

    def __init__(self, job_id: int, name: str) -> None:
        super().__init__(
            f"{name} has the same content as job {job_id}",
            "to train it once more, add it with --again",
        )
        self.job_id = job_id


class Queue(QueueMoves):
    """What is done to jobs."""

    # --- a job's life ----------------------------------------------------------------------------

    def admit(
        self,
        staged: Path,
        priority: str,
        *,
        added_by: str = "",
        again: bool = False,
        parent_job: int | None = None,
    ) -> Job:
        """Make a staged directory a job, behind all others of its priority.

        One with an `error.json` (a blocking report) goes to `failed/`, where it can be looked at
        and accepted.

        Args:
            staged: a complete, fsynced `.staging-…` directory below `state/queue/`.

        Raises:
            Duplicate: unless `again`; the staged directory is left to the caller.
            Refused: not a priority.
        """
        check_priority(priority)
        with self._lock:
            meta = decode_meta((staged / META_NAME).read_bytes())
            failed = (staged / ERROR_NAME).exists()
            holder = self.holder_of(meta.file_sha256) if meta.file_sha256 else None
            if holder is not None and not again and not failed:
                raise Duplicate(holder, meta.original_name)
            job_id = self._new_id()
            now = self._now_iso()
            meta = msgspec.structs.replace(
                meta,
                id=job_id,
                priority=priority,
                added_at=now,
                added_by=added_by or meta.added_by,
                parent_job=parent_job,
                finished_at=now if failed else None,
            )
            durable.replace(staged / META_NAME, encode_meta(meta))
            position = self._behind_all()
            name = safe_name(meta.original_name.encode())
            job = Job(job_id, FAILED if failed else priority, position, name, meta)
            if failed:
                _name_the_job(staged, job_id)
            durable.sync_directory(staged)
            try:
                durable.rename(staged, self.path(job))
            finally:
                if not staged.exists():  # also when only its fsync failed: it is a job
                    self._note(job)
            if meta.file_sha256 and not failed:
                self._remember(meta.file_sha256, job_id)
            return job

    def claim_next(self, now: datetime, quiet: QuietHours | None = None) -> Job | None:
        """Move the next job that may start into `processing/`; its attempt is counted first."""
        with self._lock:
            job = self.first_startable(now, quiet)
            if job is None:
                return None
            job = self.begin_attempt(job.id)
            return self._rename(job, PROCESSING)

    def begin_attempt(self, job_id: int) -> Job:
        """Count a start before it happens; also for a job in `processing/` that is offered again.

        An attempt that never got an end was cut short by whatever ended the daemon: it counts.
        """
        with self._lock:
            job = self.get(job_id)
            self._must_be(job, *PRIORITIES, PROCESSING)
            now = self._now_iso()
            attempts = (*job.meta.attempts, Attempt(now))[-50:]
            started = job.meta.started_at or now
            return self._edit(job, attempts=attempts, started_at=started, priority=job.priority)

    def end_attempt(self, job_id: int, result: str, error_class: str = "") -> Job:
        """How the running attempt ended: progress | crashed | interrupted. `progress` (something
        of it was committed) and `interrupted` (nobody's fault) do not count against the job."""
        with self._lock:
            job = self.get(job_id)
            attempts = job.meta.attempts
            if not attempts or attempts[-1].result in (result, "completed"):
                return job
            last = Attempt(attempts[-1].at, result, error_class)
            return self._edit(job, attempts=(*attempts[:-1], last))

    def complete(
        self,
        job_id: int,
        *,
        finished_at: str | None = None,
        seconds: float | None = None,
        steps: int | None = None,
        val_before: float | None = None,
        val_after: float | None = None,
        trained_rows: int = 0,
        trained_tokens: int = 0,
    ) -> Job:
        """A committed ledger lists the job: off to `recently_completed/`. Done twice is done."""
        with self._lock:
            job = self.get(job_id)
            if job.folder == COMPLETED:
                return job
            attempts = job.meta.attempts
            if attempts:
                attempts = (*attempts[:-1], Attempt(attempts[-1].at, "completed"))
            meta = msgspec.structs.replace(
                job.meta,
                priority=job.priority,
                attempts=attempts,
                finished_at=finished_at or self._now_iso(),
                seconds=job.meta.seconds if seconds is None else seconds,
                steps=job.meta.steps if steps is None else steps,
                val_before=job.meta.val_before if val_before is None else val_before,
                val_after=job.meta.val_after if val_after is None else val_after,
                trained_rows=trained_rows or job.meta.trained_rows,
                trained_tokens=trained_tokens or job.meta.trained_tokens,
            )
            job = self._rename(self._write_meta(job, meta), COMPLETED)
            if meta.file_sha256:
                row_hashes.remember(self.workspace, self.path(job), meta.file_sha256)
            return job

    def fail(self, job_id: int, error: JobError, *, skipped_fraction: float | None = None) -> Job:
        """Move a waiting or processing job to `failed/` with its `error.json`."""
        with self._lock:
            job = self.get(job_id)
            self._must_be(job, *PRIORITIES, PROCESSING)
            error = msgspec.structs.replace(error, at=error.at or self._now_iso())
            durable.replace(self.path(job) / ERROR_NAME, encode_error(error))
            attempts = job.meta.attempts
            if attempts and not attempts[-1].result:
                attempts = (*attempts[:-1], Attempt(attempts[-1].at, "crashed", error.error_class))
            job = self._edit(
                job,
                attempts=attempts,
                priority=job.priority,
                finished_at=self._now_iso(),
                skipped_fraction=skipped_fraction,
            )
            return self._rename(job, FAILED)

    def requeue(self, job_id: int) -> Job:
        """Put a job that was claimed back where it was in its priority."""
        with self._lock:
            job = self.get(job_id)
            if job.folder in PRIORITIES:
                return job
            self._must_be(job, PROCESSING)
            job = self.end_attempt(job_id, "interrupted")
            return self._to_priority(job, job.meta.priority)

    def retry(
        self, job_id: int, accept: bool = False, *, if_revision: int | None = None, key: str = ""
    ) -> Job:
        """Queue a failed job again, in its priority and place; attempts count anew. A blocked one
        whose report would be made against something else now (`key`, see `check.py`) is checked
        again before it starts.

        Raises:
            Refused: it did not fail, or its report blocks it and `accept` is not given.
        """
        with self._lock:
            job = self.get(job_id)
            self._fresh(if_revision, job_id)
            self._must_be(job, FAILED)
            error = self.error(job)
            kind = error.error_class if error else ""
            anew = kind == "blocked" and not accept and check.may_differ(job.meta, key)
            if job.meta.verdict == "block" and not (accept or job.meta.accepted or anew):
                raise Refused(
                    f"job {job_id} ({job.name}) is blocked: {job.meta.summary}",
                    f"to train it all the same: trainer-tui queue retry {job_id} --accept",
                )
            if kind == "unreadable" or (kind == "blocked" and not (job.meta.kept_rows or anew)):
                raise Refused(
                    f"job {job_id} ({job.name}) has no row that can be trained",
                    "correct the file and add it again",
                )
            job = self._edit(
                job,
                accepted=job.meta.accepted or accept,
                verdict="unchecked" if anew else job.meta.verdict,
                attempts=(),
                finished_at=None,
                started_at=None,
            )
            job = self._to_priority(job, job.meta.priority)
            durable.remove_file(self.path(job) / ERROR_NAME)
            self._remember(job.meta.file_sha256, job_id)
            return job

    # --- a person's wishes -----------------------------------------------------------------------

    def hold(self, job_id: int, *, if_revision: int | None = None) -> Job:
        return self._wish(job_id, if_revision, held=True)

    def unhold(self, job_id: int, *, if_revision: int | None = None) -> Job:
        return self._wish(job_id, if_revision, held=False)

    def set_not_before(self, job_id: int, at: str | None, *, if_revision: int | None = None) -> Job:
        """`at`: see `coming_time`, or None to lift it. Raises Refused: not a time."""
        if at is not None:
            try:
                at = coming_time(at, parse_time(self._now_iso())).isoformat()
            except ValueError:
                hint = "write it as 22:00 or 2026-11-24T22:00"
                raise Refused(f"{at!r} is not a time", hint) from None
        return self._wish(job_id, if_revision, not_before=at)

    def _wish(self, job_id: int, if_revision: int | None, **changes: object) -> Job:
        with self._lock:
            job = self.get(job_id)
            self._fresh(if_revision, job_id)
            self._must_be(job, *PRIORITIES)
            return self._edit(job, **changes)

    def remove(self, job_id: int, *, if_revision: int | None = None) -> str:
        """Move a job to the trash.

        Returns:
            The name in `state/trash/`, for `restore_removed`.

        Raises:
            Refused: it is being trained.
        """
        with self._lock:
            job = self.get(job_id)
            self._fresh(if_revision, job_id)
            if job.folder == PROCESSING:
                raise Refused(
                    f"job {job_id} ({job.name}) is being trained",
                    "set it aside first: trainer-tui skip",
                )
            name = f"{TRASH_PREFIX}{job.folder}.{job.directory.partition('/')[2]}"
            durable.rename(self.path(job), self.workspace.trash / name)
            self._forget(job_id)
            if job.folder != COMPLETED and self._known.get(job.meta.file_sha256) == job_id:
                self._known.pop(job.meta.file_sha256)
                known.forget(self.folder, job.meta.file_sha256)
            return name

    def restore_removed(self, removed: str | int) -> Job:
        """Undo a `remove`, named by what it returned or by the job's id.

        Raises:
            NotFound, Refused: it is no longer in the trash, or its content was added again since.
        """
        with self._lock:
            trash_name = self._in_trash(removed) if isinstance(removed, int) else removed
            folder, _, directory = trash_name.removeprefix(TRASH_PREFIX).partition(".")
            name = parse_directory_name(directory)
            trashed = self.workspace.trash / trash_name
            if name is None or folder not in QUEUE_FOLDERS or not trashed.is_dir():
                raise NotFound(f"{trash_name} is not in the trash", "it was cleared away")
            if name.id in self.index.by_id:
                raise Refused(f"job {name.id} is there already")
            meta = decode_meta((trashed / META_NAME).read_bytes())
            known.refuse_in_two(self._known, folder, name.id, meta)
            job = Job(name.id, folder, name.position, name.safe_name, meta)
            order = self.index.orders.get(folder, ())
            if any(waiting.position == job.position for waiting in order):
                job = Job(job.id, folder, self._behind_all(), job.safe_name, meta)
            durable.rename(trashed, self.path(job))
            if meta.file_sha256 and folder != FAILED:
                self._remember(meta.file_sha256, job.id)
            return self._note(job)

    def _in_trash(self, job_id: int) -> str:
        for entry in self.workspace.trash.glob(f"{TRASH_PREFIX}*-{job_id}-*"):
            name = parse_directory_name(entry.name.removeprefix(TRASH_PREFIX).partition(".")[2])
            if name is not None and name.id == job_id:
                return entry.name
        raise NotFound(f"job {job_id} is not in the trash", "it was cleared away")

    # --- upkeep ----------------------------------------------------------------------------------

    def take_report(self, job_id: int, staged: Path) -> Job | None:
        """Give a waiting job the report that was made again in `staged` (see `check.py`).

        Returns:
            The job, in `failed/` if the report blocks it; None when it does not wait any more.
        """
        with self._lock:
            try:
                return check.adopt(self, job_id, staged)
            finally:
                self.discard(staged)

    def reconcile(self) -> list[Finding]:
        """Take over what was moved, edited or deleted by hand since the last look, and say so."""
        with self._lock:
            return reconcile(self)

    def expire(self, retention: Retention, now: datetime) -> list[str]:
        """Move completed and failed jobs beyond their age or number to the trash.

        Returns:
            Their names in `state/trash/`.
        """
        with self._lock:
            return [self.remove(job.id) for job in expired(self.jobs(), retention, now)]

    def discard(self, staged: Path) -> None:
        """Delete a staged directory that will not become a job."""
        if staged.parent == self.folder and durable.is_staging(staged.name):
            shutil.rmtree(staged, ignore_errors=True)

    def _new_id(self) -> int:
        """One that no job ever had; burned on disk before anything carries it."""
        job_id = self._next_id
        durable.replace(self.folder / NEXT_ID_NAME, f"{job_id + 1}\n".encode())
        self._next_id = job_id + 1
        return job_id

    def _behind_all(self) -> int:
        """A position behind every job there is, so that arrivals stay in their order also when
        one that was claimed comes back."""
        return 0 if self.index.highest is None else self.index.highest + GAP

    def _remember(self, file_sha256: str, job_id: int) -> None:
        if file_sha256 not in self._known:
            self._known[file_sha256] = job_id
            known.remember(self.folder, file_sha256, job_id)


def _name_the_job(staged: Path, job_id: int) -> None:
    error = read_error(staged)
    if error is not None:
        durable.replace(staged / ERROR_NAME, encode_error(with_number(error, job_id)))
