"""The queue for the rest of the daemon: changes on one thread, answers and events on the loop.

Invariant: what the loop sees (`processing`, `claimable`, `counts`) is the state after the last
finished change. Everything that changes is told in one `jobs` event, coalesced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trainer_tui.daemon import job_view
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.job_view import Context, Standing
from trainer_tui.daemon.settings import Settings
from trainer_tui.queue import check
from trainer_tui.queue.job import Job, JobError, State
from trainer_tui.queue.line import Work
from trainer_tui.queue.store import Queue
from trainer_tui.safety import messages, quiet_hours
from trainer_tui.safety.errors import NotFound
from trainer_tui.safety.manifest import LedgerEntry
from trainer_tui.safety.quiet_hours import QuietHours
from trainer_tui.safety.workspace import Workspace

T = TypeVar("T")
encode = msgspec.json.Encoder().encode
log = logging.getLogger("daemon")
EVENT_EVERY_S = 0.1
LOOK_EVERY_S = 5.0  # quiet hours and `not_before` pass without any change of ours
WATCHED = 200  # so many of the first jobs are told about when only their place changed
PIECE_JOBS = 500
PERMANENT = ("data_error", "plan_changed")  # the same file would fail the same way


@dataclass(frozen=True, slots=True)
class Trainable:
    """What a trainer is told about a job."""

    id: int
    name: str
    folder: Path
    file_sha256: str
    attempts: int
    others: tuple[int, ...] = ()  # jobs of the same content that are not done
    tokens: int = 0  # of one epoch; 0: not counted


@dataclass(frozen=True, slots=True)
class Where:
    """Where in the trainer it happened, as far as that is known. `line`: the first of the step."""

    phase: str = ""
    step: int = 0
    stack: str = ""
    line: int = 0


NOWHERE = Where()


class Desk:
    """`open` blocks and comes first; everything else runs on the event loop."""

    def __init__(self, workspace: Workspace, settings: Settings, bus: Bus) -> None:
        self._workspace, self._settings, self._bus = workspace, settings, bus
        self._thread = ThreadPoolExecutor(1, "queue")
        self._dirty = asyncio.Event()
        self._touched: set[int] = set()
        self._told: dict[int, bytes] = {}
        self._errors: dict[str, JobError | None] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.context: Callable[[], Context] = lambda: Context(datetime.now().astimezone())
        self.processing: tuple[Trainable, ...] = ()
        self.claimable = False
        self.unchecked = False  # what comes next has to be checked again before it may start
        self.key = ""  # see queue/check.py
        self.counts: dict[str, int] = {}
        self.work = Work()

    def open(self) -> None:
        """Read the queue's directories; blocks. What was odd about them is in `findings`."""
        self._queue = Queue(self._workspace)
        self.findings = list(self._queue.findings)
        self._queue.said = frozenset(self.findings)  # told at the start, not by the first look too
        self._look()

    @property
    def revision(self) -> int:
        return self._queue.revision

    @property
    def queue(self) -> Queue:
        """For reading in a thread (its lock may be held for a while); changes go through `ask`."""
        return self._queue

    def quiet(self) -> QuietHours | None:
        return quiet_hours.parse(self._settings.config.intake.quiet_hours)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    # --- changes ---------------------------------------------------------------------------------

    async def ask(self, question: Callable[[Queue], T], *touched: int) -> T:
        """Run it on the queue's thread; afterwards everyone sees what it changed."""
        before = self._queue.revision
        loop = asyncio.get_running_loop()

        def work() -> T:
            try:
                return question(self._queue)
            finally:
                if self._queue.revision != before:
                    self._look()

        try:
            answer = await loop.run_in_executor(self._thread, work)
        finally:
            self._touched.update(touched)
            if self._queue.revision != before:
                self._changed()
        if isinstance(answer, Job):
            self._touched.add(answer.id)
        return answer

    async def aside(self, work: Callable[[], T]) -> T:
        """Other file work that must not run beside a change of the queue."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def settings_changed(self) -> None:
        """What may start, and on what report, may be different now."""
        await self.aside(self._look)
        self._changed()

    def look_again(self) -> None:
        """What views show changed although the queue did not."""
        self._dirty.set()

    def _changed(self) -> None:
        self._dirty.set()
        self.on_change()

    def _look(self) -> None:
        """On the queue's thread (or before the loop): what the loop decides by. Costs the same
        whatever the number of jobs."""
        queue = self._queue
        processing = tuple(self._trainable(job) for job in queue.processing())
        now = datetime.now().astimezone()
        first = queue.first_startable(now, self.quiet())
        self.key = self.key_now()
        self.unchecked = first is not None and check.is_outdated(first.meta, self.key)
        claimable = first is not None and not self.unchecked
        self.work, self.counts = queue.work(), queue.counts()
        self.processing, self.claimable = processing, claimable

    def key_now(self) -> str:
        """What a report would be made against; looks at the disk."""
        return check.key_of(self._settings.in_force(), self._workspace.root)

    def _trainable(self, job: Job) -> Trainable:
        folder = self._queue.path(job)
        attempts = job.attempts_without_progress
        others = self._queue.others_like(job)
        sha256, tokens = job.meta.file_sha256, job.meta.tokens
        return Trainable(job.id, job.name, folder, sha256, attempts, others, tokens)

    # --- a job's life, as training drives it -----------------------------------------------------

    async def claim_next(self) -> Trainable | None:
        """The next job that may start, now in `processing/`, its attempt counted."""
        now, quiet = datetime.now().astimezone(), self.quiet()

        def claim(queue: Queue) -> Job | None:
            self._look()
            return queue.claim_next(now, quiet) if self.claimable else None

        job = await self.ask(claim)
        return self._trainable(job) if job is not None else None

    async def begin_again(self, job_id: int) -> None:
        """A job in `processing/` is offered again: another attempt."""
        await self.ask(lambda queue: queue.begin_attempt(job_id))

    async def end_attempt(self, job_id: int, result: str, error_class: str = "") -> None:
        await self.ask(lambda queue: queue.end_attempt(job_id, result, error_class))

    async def started(self, message: messages.JobStarted) -> None:
        """What the trainer found out about the file when it began."""
        self._touched.add(message.job_id)
        self._dirty.set()

    async def complete(self, job_id: int, entry: LedgerEntry) -> None:
        """A committed ledger lists it."""
        await self.ask(
            lambda queue: queue.complete(
                job_id,
                finished_at=entry.completed_at,
                seconds=entry.seconds,
                steps=entry.steps,
                val_before=entry.val_before,
                val_after=entry.val_after,
                trained_rows=entry.rows,
                trained_tokens=entry.tokens,
            )
        )

    async def fail(
        self,
        job_id: int,
        error_class: str,
        message: str,
        hint: str,
        fraction: float | None = None,
        where: Where = NOWHERE,
    ) -> None:
        """Set a job aside; a skipped one goes on from there when it is retried."""
        error = JobError(
            error_class=error_class,
            message=message,
            hint=hint,
            line=where.line,
            phase=where.phase,
            step=where.step,
            stack=where.stack,
            retryable=error_class not in PERMANENT,
        )
        kept = fraction if error_class == "skipped" else None
        await self.ask(lambda queue: queue.fail(job_id, error, skipped_fraction=kept))

    # --- views -----------------------------------------------------------------------------------

    def name_of(self, job_id: int) -> str:
        """Of a job in `processing/`."""
        return next((job.name for job in self.processing if job.id == job_id), f"#{job_id}")

    async def job(self, job_id: int) -> Job:
        """As the queue has it now. Raises NotFound."""
        return await asyncio.to_thread(self._queue.get, job_id)

    def _error_of(self, job: Job) -> JobError | None:
        """Read once: the error of a failed job does not change while it is failed."""
        if job.state != "failed":
            return None
        key = f"{job.directory}:{job.meta.finished_at}"
        if key not in self._errors:
            if len(self._errors) > 10_000:
                self._errors.clear()
            self._errors[key] = self._queue.error(job)
        return self._errors[key]

    async def listing(
        self, state: State | None, limit: int, offset: int
    ) -> tuple[int, AsyncIterator[bytes]]:
        """`GET /v1/jobs`: how many jobs are listed, and its JSON in pieces, each made when the one
        before is sent: a hundred thousand jobs are never in memory twice."""
        context, queue = self.context(), self._queue

        def read() -> tuple[bytes, list[Job], Standing | None]:
            revision = queue.revision
            jobs, total = queue.page(state, offset, limit)
            head = b'{"revision":%d,"total":%d,"jobs":[' % (revision, total)
            return head, jobs, self._standing_in(jobs)

        head, jobs, standing = await asyncio.to_thread(read)
        shown = job_view.views(jobs, standing, context, self._error_of)

        def piece() -> bytes:
            return b",".join(map(encode, itertools.islice(shown, PIECE_JOBS)))

        async def pieces() -> AsyncIterator[bytes]:
            yield head
            some = await asyncio.to_thread(piece)
            while some:
                yield some
                some = await asyncio.to_thread(piece)
                if some:
                    yield b","
            yield b"]}"

        return len(jobs), pieces()

    async def view(self, job_id: int) -> dict[str, Any]:
        """One job. Raises NotFound."""
        found = await asyncio.to_thread(self._view_of, job_id, self.context())
        if found is None:
            raise NotFound(f"there is no job {job_id}", "trainer-tui queue list")
        return found

    def _view_of(self, job_id: int, context: Context) -> dict[str, Any] | None:
        job = self._queue.find(job_id)
        if job is None:
            return None
        standing = self._standing(job)
        return job_view.view(job, standing, context, self._error_of(job))

    def _standing_in(self, jobs: list[Job]) -> Standing | None:
        """Of the first waiting one of a stretch."""
        first = next((job for job in jobs if job.state == "waiting"), None)
        return self._standing(first) if first is not None else None

    def _standing(self, job: Job) -> Standing | None:
        """None when it does not wait. One that was moved meanwhile stands where it stands now."""
        if job.state != "waiting":
            return None
        try:
            place, work = self._queue.place(job.id), self._queue.work_before(job.id)
        except NotFound:
            place, work = None, None
        if place is None or work is None:  # claimed or removed since it was read
            return Standing(1, len(self.processing), Work())
        return Standing(place, len(self.processing) + place - 1, work)

    # --- events ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell what changed; notice what changes by the clock alone. Ends by cancellation."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._dirty.wait()
            except TimeoutError:
                before = self.claimable, self.unchecked, self.key
                await self.aside(self._look)
                if (self.claimable, self.unchecked, self.key) != before:
                    self._changed()
                continue
            self._dirty.clear()
            await self._tell()
            await asyncio.sleep(EVENT_EVERY_S)

    async def _tell(self) -> None:
        touched, self._touched = self._touched, set()
        context = self.context()
        changed, removed, revision = await asyncio.to_thread(self._differences, touched, context)
        if changed or removed:
            self._bus.publish(
                "jobs", {"revision": revision, "changed": changed, "removed": removed}
            )

    def _differences(
        self, touched: set[int], context: Context
    ) -> tuple[list[dict[str, Any]], list[int], int]:
        """The first jobs as they would be listed, and those that were touched elsewhere."""
        queue, revision = self._queue, self._queue.revision
        near, _ = queue.page(None, 0, WATCHED)
        changed: list[dict[str, Any]] = []
        shown: dict[int, bytes] = {}
        for view in job_view.views(near, self._standing_in(near), context, self._error_of):
            key = encode({**view, "fraction": None, "eta_s": None, "eta_p90_s": None})
            shown[view["id"]] = key
            if view["id"] in touched or self._told.get(view["id"]) != key:
                changed.append(view)
        far = (self._view_of(job_id, context) for job_id in sorted(touched - shown.keys()))
        changed += [view for view in far if view is not None]
        asked_after = (touched | self._told.keys()) - shown.keys()
        removed = sorted(job_id for job_id in asked_after if queue.find(job_id) is None)
        self._told = shown
        return changed, removed, revision
