"""The queue opened: read from its directories, asked, and changed by one rename or one meta file.

Invariant: memory follows the disk, never the other way round: a change is renamed first and then
noted. One process changes the queue (the daemon, which holds its lock for life); its threads may
call anything here. A job is in exactly one folder at every moment, also after a power cut.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from trainer_tui.queue import known, scan
from trainer_tui.queue.index import Index
from trainer_tui.queue.job import (
    COMPLETED,
    FAILED,
    META_NAME,
    PROCESSING,
    Job,
    JobError,
    Meta,
    State,
    encode_meta,
    read_error,
)
from trainer_tui.queue.line import Work
from trainer_tui.queue.numbering import next_id
from trainer_tui.queue.waiting import first_startable
from trainer_tui.safety import clock, durable
from trainer_tui.safety.errors import NotFound, Refused, Stale
from trainer_tui.safety.quiet_hours import QuietHours
from trainer_tui.safety.workspace import PRIORITIES, QUEUE_FOLDERS, Workspace


class QueueBase:
    """Opening, reading and the one way to change. See `Queue` for what is done to jobs."""

    def __init__(self, workspace: Workspace, now_iso: Callable[[], str] = clock.now_iso) -> None:
        """Scan the directories. `findings` says what was odd about them."""
        self.workspace = workspace
        self.folder = workspace.queue
        self._now_iso = now_iso
        self._lock = threading.RLock()
        self.index = Index()
        self._known, problem = known.read(self.folder)
        self._revision = max(1, int(clock.now_s() * 1000))  # above what any client has seen
        self._changed_at: dict[int, int] = {}
        self.findings: list[scan.Finding] = []
        if problem:
            self.findings.append(scan.Finding("damaged", 0, problem))
        self.said: frozenset[scan.Finding] = frozenset()
        self.folder_marks: tuple[int, ...] | None = None
        self.lasting: list[scan.Finding] = []
        self.data_marks: dict[int, scan.DataMark] = {}
        for name in QUEUE_FOLDERS:
            durable.make_directory(self.folder / name)
        durable.sweep_staging(self.folder)
        self._scan()
        self._next_id, finding = next_id(
            workspace, itertools.chain(self.index.by_id, self._known.values())
        )
        self.findings += [finding] if finding is not None else []

    def _scan(self) -> None:
        first: dict[int, scan.Found] = {}
        for found in scan.directories(self.folder):
            if isinstance(found, scan.Finding):
                self.findings.append(found)
            elif found.name.id in first:
                self.findings.append(_twice(found, first[found.name.id]))
            else:
                first[found.name.id] = found
        self.index.fill(self._read(list(first.values())))

    def _read(self, found: list[scan.Found]) -> Iterator[Job]:
        for job, finding in scan.read_jobs(self.folder, found):
            if finding is not None:
                self.findings.append(finding)
            yield job

    # --- reading ---------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Grows with every change, also over restarts."""
        return self._revision

    def get(self, job_id: int) -> Job:
        """Raises NotFound."""
        with self._lock:
            try:
                return self.index.by_id[job_id]
            except KeyError:
                raise NotFound(f"there is no job {job_id}", "trainer-tui queue list") from None

    def jobs(self) -> list[Job]:
        """All: processing, waiting in training order, then failed and completed, newest first."""
        with self._lock:
            done = self._done(FAILED, COMPLETED)
            return [*self.processing(), *self.index.waiting(), *done]

    def waiting(self) -> list[Job]:
        """In training order; the held ones too."""
        with self._lock:
            return list(self.index.waiting())

    def processing(self) -> list[Job]:
        """Oldest first: the order in which they were claimed."""
        with self._lock:
            jobs = self.index.in_folder(PROCESSING)
            return sorted(jobs, key=lambda job: (job.meta.started_at or "", job.position, job.id))

    def place(self, job_id: int) -> int | None:
        """Rank among the waiting, 1 = next; None when it does not wait. Raises NotFound."""
        with self._lock:
            self.get(job_id)
            return self.index.place(job_id)

    def page(self, state: State | None, offset: int, limit: int) -> tuple[list[Job], int]:
        """A stretch of `jobs()`, or of those in one state, and how many there are in all. No list
        of all jobs is made."""
        with self._lock:
            processing = self.processing() if state in (None, "processing") else []
            waits = state in (None, "waiting")
            folders = {None: (FAILED, COMPLETED), "failed": (FAILED,), "completed": (COMPLETED,)}
            done = self._done(*folders.get(state, ()))
            waiting = self.index.waiting() if waits else iter(())
            found = itertools.chain(processing, waiting, done)
            total = len(processing) + len(done) + (self.counts()["waiting"] if waits else 0)
            return list(itertools.islice(found, offset, offset + limit)), total

    def find(self, job_id: int) -> Job | None:
        """The job, or None when there is none."""
        with self._lock:
            return self.index.by_id.get(job_id)

    def others_like(self, job: Job) -> tuple[int, ...]:
        """Other jobs of the same content that are not done."""
        with self._lock:
            ids = self.index.by_content.get(job.meta.file_sha256, ())
            found = (self.index.by_id[one] for one in ids if one != job.id)
            return tuple(sorted(one.id for one in found if one.folder != COMPLETED))

    def first_startable(self, now: datetime, quiet: QuietHours | None) -> Job | None:
        """The waiting job that a claim would take now."""
        with self._lock:
            return first_startable(self.index.waiting(), now, quiet)

    def _done(self, *folders: str) -> list[Job]:
        """Newest first."""
        jobs = [job for folder in folders for job in self.index.in_folder(folder)]
        return sorted(jobs, key=lambda job: (job.meta.finished_at or "", job.id), reverse=True)

    def work(self) -> Work:
        """Of everything that waits."""
        with self._lock:
            return self.index.work()

    def work_before(self, job_id: int) -> Work | None:
        """Of what waits ahead of a job; None when it does not wait. Raises NotFound."""
        with self._lock:
            job = self.get(job_id)
            return self.index.work_before(job) if job.folder in PRIORITIES else None

    def counts(self) -> dict[str, int]:
        """Jobs in each folder, and `waiting` over the three priorities."""
        with self._lock:
            found = dict.fromkeys(QUEUE_FOLDERS, 0) | self.index.counts()
            return found | {"waiting": sum(found[priority] for priority in PRIORITIES)}

    def path(self, job: Job) -> Path:
        return job.path(self.folder)

    def error(self, job: Job) -> JobError | None:
        """Why a job failed; None when it did not."""
        return read_error(self.path(job)) if job.folder == FAILED else None

    def holder_of(self, file_sha256: str) -> int | None:
        """The job that has this content or had it. One whose report blocked it does not count: the
        same file may come again once the settings allow it."""
        with self._lock:
            ids = self.index.by_content.get(file_sha256, ())
            sound = [one for one in ids if self.index.by_id[one].folder != FAILED]
            return min(sound, default=self._known.get(file_sha256))

    # --- changing --------------------------------------------------------------------------------

    def _fresh(self, if_revision: int | None, *job_ids: int) -> None:
        """Compare-and-set: the jobs a request names must be as its sender saw them."""
        if if_revision is None:
            return
        for job_id in job_ids:
            if self._changed_at.get(job_id, 0) > if_revision:
                job = self.index.by_id.get(job_id)
                state = f"is {job.state} now" if job else "is gone"
                raise Stale(f"job {job_id} {state}: it changed meanwhile", "look again", job)

    def _note(self, job: Job) -> Job:
        """Memory after the disk."""
        self.index.put(job)
        self._revision += 1
        self._changed_at[job.id] = self._revision
        return job

    def note_found(self, job: Job) -> None:
        """A job that someone put there by hand (reconciliation only)."""
        self._note(job)
        self._next_id = max(self._next_id, job.id + 1)

    def note_gone(self, job_id: int) -> None:
        """A job that someone deleted by hand (reconciliation only)."""
        self._forget(job_id)

    def note_report(self, job_id: int, values: dict[str, object]) -> Job:
        """What a report that was made again says (see `check.py` only)."""
        return self._edit(self.get(job_id), **values)

    def keep(self, job_id: int) -> Job:
        """A person asks for it, so it is not there for a restore alone."""
        with self._lock:
            job = self.get(job_id)
            return self._edit(job, after_restore=False) if job.meta.after_restore else job

    def _forget(self, job_id: int) -> None:
        self.index.drop(job_id)
        self._revision += 1
        self._changed_at[job_id] = self._revision

    def _rename(self, job: Job, folder: str, position: int | None = None) -> Job:
        position = job.position if position is None else position
        moved = Job(job.id, folder, position, job.safe_name, job.meta)
        if moved.directory == job.directory:
            return job
        try:
            durable.rename(self.path(job), self.path(moved))
        except FileNotFoundError:
            self._forget(job.id)
            raise Stale(
                f"job {job.id} is not where it was: someone moved or deleted it by hand",
                "look again",
            ) from None
        return self._note(moved)

    def _write_meta(self, job: Job, meta: Meta) -> Job:
        if meta == job.meta:
            return job
        durable.replace(self.path(job) / META_NAME, encode_meta(meta))
        return self._note(Job(job.id, job.folder, job.position, job.safe_name, meta))

    def _edit(self, job: Job, **changes: object) -> Job:
        return self._write_meta(job, msgspec.structs.replace(job.meta, **changes))

    def _must_be(self, job: Job, *folders: str) -> None:
        if job.folder not in folders:
            raise Refused(f"job {job.id} ({job.name}) is {job.state}, so this cannot be done")


def _twice(found: scan.Found, first: scan.Found) -> scan.Finding:
    where = f"{found.folder} and {first.folder}"
    return scan.Finding(
        "twice",
        first.name.id,
        f"two directories carry job {first.name.id} ({where}); the second is left alone",
    )
