"""Reports made again before a job starts: when it came before there was a model to count tokens
with, or when `max_length`, the tokenizer or a limit has changed since.

Invariant: no job is claimed on an outdated report (`Desk.claimable`); the one that comes next is
checked first, the others behind it. A worker of its own, so that intake never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.intake_worker import IntakeWorker, Reply
from trainer_tui.daemon.teller import Teller
from trainer_tui.queue import check
from trainer_tui.queue.job import Job, JobError
from trainer_tui.queue.store import Queue
from trainer_tui.safety import clock
from trainer_tui.safety.workspace import Workspace

AGAIN_S = 30.0
IO_AGAIN_S = 10.0  # the files behind it wait meanwhile
LOOK_EVERY_S = 5.0
TRIES = 3
SCAN_SHARE = 50  # one part of the time in so many goes into looking through all that wait
PASSING = ("disk", "config", "busy")  # nothing that is wrong with the file
_TRY_AGAIN_S = {"worker_died": 0.0, "io_error": IO_AGAIN_S}  # it may be the file; `TRIES` tell


class Checks:
    """`run` is the daemon's; `wake` when the queue or the settings have changed."""

    def __init__(self, workspace: Workspace, desk: Desk, teller: Teller, run_tag: str) -> None:
        self._desk, self._teller = desk, teller
        self._worker = IntakeWorker(workspace, run_tag)
        self._wake = asyncio.Event()
        self._todo: deque[int] = deque()
        self._seen: tuple[str, int] = ("", -1)
        self._scan_again_s = 0.0
        self._not_before_s: dict[int, float] = {}
        self._failed: dict[int, int] = {}
        self.why_not: Callable[[], str] = lambda: ""  # why nothing is written now

    def wake(self) -> None:
        self._wake.set()

    async def close(self) -> None:
        await self._worker.close()

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            self._wake.clear()
            job = None if self.why_not() else await self._desk.aside(self._next)
            if job is not None:
                await self._check(job)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()

    def _next(self) -> Job | None:
        """On the queue's thread: what would start now, else whatever waits with an old report."""
        queue, key = self._desk.queue, self._desk.key
        first = queue.first_startable(datetime.now().astimezone(), self._desk.quiet())
        if first is not None and self._is_due(first, key):
            return first
        start_s = clock.monotonic_s()
        new = self._seen != (key, queue.revision)
        if not self._todo and new and (start_s >= self._scan_again_s or key != self._seen[0]):
            self._seen = (key, queue.revision)
            waiting = queue.waiting()
            self._todo.extend(job.id for job in waiting if check.is_outdated(job.meta, key))
            # Each of 100,000 files that come in would look at all the others otherwise.
            now_s = clock.monotonic_s()
            self._scan_again_s = now_s + SCAN_SHARE * (now_s - start_s)
        while self._todo:
            job = queue.find(self._todo.popleft())
            if job is not None and job.state == "waiting" and self._is_due(job, key):
                return job
        return None

    def _is_due(self, job: Job, key: str) -> bool:
        late = self._not_before_s.get(job.id, 0.0) <= clock.monotonic_s()
        return late and check.is_outdated(job.meta, key)

    async def _check(self, job: Job) -> None:
        reply = await self._worker.check(self._desk.queue.path(job))
        if reply.ok:
            self._failed.pop(job.id, None)
            self._not_before_s.pop(job.id, None)
            staged = Path(reply.staged)
            found = await self._desk.ask(lambda queue: queue.take_report(job.id, staged), job.id)
            if found is not None:
                self._say(job, found)
        elif reply.error_class != "gone":  # moved meanwhile: it is found again where it is now
            await self._put_off(job, reply)

    def _say(self, old: Job, job: Job) -> None:
        if job.state == "failed":
            error = self._desk.queue.error(job)
            text = f"#{job.id} {job.name} was checked again and set aside: {job.meta.summary}"
            self._teller.say("error", "job", text, hint=error.hint if error else "", job=job.id)
        elif job.meta.summary != old.meta.summary or old.meta.verdict == "unchecked":
            text = f"#{job.id} {job.name} was checked again: {job.meta.summary}"
            self._teller.say("info", "job", text, job=job.id)

    async def _put_off(self, job: Job, reply: Reply) -> None:
        """Try again later; a file that cannot be checked must not hold up the others for ever."""
        self._not_before_s[job.id] = clock.monotonic_s() + AGAIN_S
        if reply.error_class in PASSING:
            if job.id not in self._failed:
                self._failed[job.id] = 0
                text = f"#{job.id} {job.name} cannot be checked again yet: {reply.message}"
                self._teller.say("warning", "job", text, hint=reply.hint, job=job.id)
            return
        self._failed[job.id] = self._failed.get(job.id, 0) + 1
        again_s = _TRY_AGAIN_S.get(reply.error_class)
        if again_s is not None and self._failed[job.id] < TRIES:
            self._not_before_s[job.id] = clock.monotonic_s() + again_s
            return
        del self._failed[job.id]
        hint = reply.hint
        if again_s is not None:
            hint = f"{hint}; then: trainer-tui queue retry {job.id}".removeprefix("; then: ")
        error = JobError(
            error_class=reply.error_class,
            message=reply.message,
            hint=hint,
            phase="check",
            retryable=again_s is not None,
        )
        await self._desk.ask(partial(_fail_waiting, job_id=job.id, error=error), job.id)
        text = f"#{job.id} {job.name} could not be checked again: {reply.message}"
        self._teller.say("error", "job", text, hint=hint, job=job.id)


def _fail_waiting(queue: Queue, job_id: int, error: JobError) -> None:
    """Unless somebody removed it meanwhile."""
    job = queue.find(job_id)
    if job is not None and job.state == "waiting":
        queue.fail(job_id, error)
