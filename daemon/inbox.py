"""Files dropped into `inbox/`, and files named by a client: taken, admitted, the original last.

Invariant: a file is in the inbox or in the queue, never in neither: the original goes only after
its job is committed. What cannot be taken is said once and looked at again when it has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from watchfiles import Change, awatch

from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.intake_worker import IntakeWorker, Reply
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.queue import copies, intake, originals
from trainer_tui.queue.intake import Candidate, InboxLook
from trainer_tui.queue.job import Job, Source
from trainer_tui.queue.store import Duplicate, Queue
from trainer_tui.safety import clock
from trainer_tui.safety.errors import DataProblem, Refused
from trainer_tui.safety.text import file_name_text
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("intake")
SETTLING_LOOK_S = 0.25
BUSY_AGAIN_S = 1.0
FAILED_AGAIN_S = 30.0
WORKER_DEATHS = 3
LOOK_AGAIN_S = 0.25  # while files are taken; and never more than a share of the time
LOOK_SHARE = 20
WATCH_STEP_MS = 100
WATCH_AGAIN_S = 2.0


class Inbox:
    """`run` is the daemon's; `add` is called by the API, beside it."""

    def __init__(
        self, workspace: Workspace, settings: Settings, desk: Desk, teller: Teller, run_tag: str
    ) -> None:
        self._workspace, self._settings = workspace, settings
        self._desk, self._teller = desk, teller
        self._worker = IntakeWorker(workspace, run_tag)
        self._look = intake.Inbox(workspace)
        self._wake = asyncio.Event()
        self._not_before: dict[Path, tuple[Source, float]] = {}
        self._said: dict[Path, Source] = {}
        self._deaths: dict[Path, tuple[Source, int]] = {}
        self._left: dict[Path, Job] = {}  # jobs whose originals cannot be removed
        self._look_cost_s = 0.0
        self.why_not: Callable[[], str] = lambda: ""  # why nothing is taken now

    # --- the inbox -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends by cancellation."""
        await self._recover()
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                start_s = clock.monotonic_s()
                self._wake.clear()
                wait_s = await self._look_once()
                # However often it is woken: half of the time at most goes into looking.
                await asyncio.sleep(min(self._look_cost_s, clock.monotonic_s() - start_s))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
        finally:
            watching.cancel()

    def wake(self) -> None:
        """Look at once: what held it back is over."""
        self._wake.set()

    async def close(self) -> None:
        await self._worker.close()

    async def _recover(self) -> None:
        """Originals whose jobs were admitted before a kill, or could not be removed then."""
        jobs = await asyncio.to_thread(self._desk.queue.jobs)
        found = await asyncio.to_thread(originals.recover, self._workspace, jobs)
        for path in found.removed:
            log.info("%s had become a job already: its original is removed", path.name)
        for text in found.stuck:
            self._teller.say("warning", "inbox", text)
        new = found.left.keys() - self._left.keys()
        self._left |= found.left
        if new:
            text = f"inbox: {_counted(new)} cannot be removed, but became jobs earlier"
            hint = "let the daemon's user write to the folder, or remove them"
            self._teller.say("warning", "inbox", text, hint=hint)

    async def _watch(self) -> None:
        """Wake the loop when a file may have come; the fallback scan works without it (no inotify
        left, or more events at once than the kernel keeps)."""
        loop = asyncio.get_running_loop()
        logged = ""
        while True:
            # Runs once this task waits for the first change, so once the kernel watches: what came
            # after the last look and before that is told by nobody.
            loop.call_soon(self._wake.set)
            try:
                async for _ in awatch(
                    self._workspace.inbox,
                    watch_filter=_may_be_a_file,
                    debounce=500,
                    step=WATCH_STEP_MS,
                    recursive=True,
                ):
                    self._wake.set()
            except* (OSError, RuntimeError) as problems:
                # A name that is not UTF-8 also ends up here: it is a change like any other.
                text = str(problems.exceptions[0])
                if text != logged:  # a folder that may not be read is met every time
                    log.warning("watching the inbox begins anew: %s", text)
                logged = text
            await asyncio.sleep(WATCH_AGAIN_S)

    async def _look_once(self) -> float:
        """Look, take what is ready, and say when to look again (seconds)."""
        if self.why_not():
            return self._settings.config.poll_interval
        start_s = clock.monotonic_s()
        found = await self._look_at()
        self._look_cost_s = clock.monotonic_s() - start_s
        again_s = start_s + max(LOOK_AGAIN_S, LOOK_SHARE * self._look_cost_s)
        await self._forget_others(found.ready)
        waits = [self._settings.config.poll_interval]
        if found.settling:
            waits.append(SETTLING_LOOK_S)
        ahead_s = 0.0
        for candidate in found.ready:
            now_s = clock.monotonic_s()
            if now_s >= again_s and self._wake.is_set():
                return 0.0  # something came, and looking is cheap beside what was taken meanwhile
            if now_s >= ahead_s:
                await self._take_all(await self._look_at(above=candidate.priority))
                ahead_s = clock.monotonic_s() + SETTLING_LOOK_S
            waits.append(await self._take_when_due(candidate))
        return max(0.05, min(waits))

    async def _look_at(self, above: str = "") -> InboxLook:
        found = await asyncio.to_thread(self._look.look, clock.monotonic_s(), above)
        for text in found.odd:
            self._teller.say("warning", "inbox", text)
        return found

    async def _take_all(self, found: InboxLook) -> None:
        """What came with a higher priority overtakes the list in hand."""
        for candidate in found.ready:
            await self._take_when_due(candidate)

    async def _take_when_due(self, candidate: Candidate) -> float:
        """Take it, or say in how many seconds to try (again)."""
        source, again_s = self._not_before.get(candidate.path, (None, 0.0))
        if source == candidate.source and again_s > clock.monotonic_s():
            return again_s - clock.monotonic_s()
        if not await asyncio.to_thread(intake.is_unchanged, candidate):
            return SETTLING_LOOK_S
        job = self._left.get(candidate.path)
        if job is not None and job.meta.source == candidate.source:
            await self._remove(candidate.path, job)
            return FAILED_AGAIN_S
        return math.inf if await self._take(candidate) else BUSY_AGAIN_S

    async def _forget_others(self, ready: list[Candidate]) -> None:
        """What was put off and is not there any more."""
        if self._not_before or self._said or self._left:
            here = {candidate.path for candidate in ready}
            for memory in (self._not_before, self._said, self._deaths):
                for path in memory.keys() - here:
                    del memory[path]
            # A folder that cannot be read for a while must not make new jobs of its files.
            for path in self._left.keys() - here:
                if await asyncio.to_thread(originals.is_gone, path):
                    del self._left[path]

    async def _take(self, candidate: Candidate) -> bool:
        """Take one file; False when it has to wait."""
        reply = await self._worker.take(
            candidate.path,
            candidate.priority,
            again=False,
            keep_original=False,
            added_by="inbox",
            unchanged_s=candidate.unchanged_s,
        )
        if not reply.ok:
            self._put_off(candidate, reply)
            return False
        try:
            wish = partial(admit_found, staged=Path(reply.staged), priority=candidate.priority)
            job = await self._desk.ask(wish)
        except OSError as problem:
            why = f"the disk does not take it: {problem.strerror}"
            self._put_off(candidate, Reply(False, error_class="disk", message=why))
            return False
        self._say_taken(job)
        await self._remove(candidate.path, job)
        return True

    async def _remove(self, path: Path, job: Job) -> None:
        """Remove an original; one that cannot be is said once, and tried again now and then."""
        try:
            await asyncio.to_thread(originals.remove_original, path, job)
        except Refused as problem:
            self._not_before[path] = job.meta.source, clock.monotonic_s() + FAILED_AGAIN_S
            if self._left.get(path) is None or self._left[path].id != job.id:
                text, hint = problem.message, problem.hint
                self._teller.say("warning", "inbox", text, hint=hint, job=job.id)
            self._left[path] = job
        else:
            self._left.pop(path, None)

    def _put_off(self, candidate: Candidate, reply: Reply) -> None:
        busy = reply.error_class == "busy"
        again_s = clock.monotonic_s() + (BUSY_AGAIN_S if busy else FAILED_AGAIN_S)
        if reply.error_class == "worker_died" and self._died_often(candidate):
            again_s = math.inf
        self._not_before[candidate.path] = (candidate.source, again_s)
        if not busy and self._said.get(candidate.path) != candidate.source:
            self._said[candidate.path] = candidate.source
            name = file_name_text(os.fsencode(candidate.path.name))
            text = f"inbox: {name} was not taken: {reply.message}"
            self._teller.say("warning", "inbox", text, hint=reply.hint)

    def _died_often(self, candidate: Candidate) -> bool:
        """Whether the worker has died of this very file so often that it is left alone."""
        source, times = self._deaths.get(candidate.path, (candidate.source, 0))
        times = times + 1 if source == candidate.source else 1
        self._deaths[candidate.path] = candidate.source, times
        if times == WORKER_DEATHS:
            name = file_name_text(os.fsencode(candidate.path.name))
            text = f"inbox: {name} ended the intake worker {times} times: it is left alone"
            hint = "trainer-tui validate FILE; it is looked at again when it has changed"
            self._teller.say("error", "inbox", text, hint=hint)
        return times >= WORKER_DEATHS

    def _say_taken(self, job: Job) -> None:
        if job.state == "failed":
            error = self._desk.queue.error(job)
            why = f": {error.message}" if error else ""
            text = f"#{job.id} {job.name} was set aside{why}"
            self._teller.say("error", "job", text, hint=error.hint if error else "", job=job.id)
        else:
            summary = f" ({job.meta.summary})" if job.meta.summary else ""
            text = f"#{job.id} {job.name}: {job.meta.kept_rows or job.meta.rows} rows{summary}"
            self._teller.say("info", "job", text, job=job.id)

    # --- a client's file -------------------------------------------------------------------------

    async def add(self, path: Path, priority: str, *, again: bool, added_by: str) -> Job:
        """Queue a copy of a file; the file itself stays.

        Raises:
            Refused: it cannot be taken (no plain file, still being written, a duplicate).
            DataProblem: there is nothing in it to train on.
        """
        if why := self.why_not():
            raise Refused(f"no file is taken now: {why}")
        reply = await self._worker.take(
            path, priority, again=again, keep_original=True, added_by=added_by
        )
        if not reply.ok:
            kind = DataProblem if reply.error_class == "data_error" else Refused
            raise kind(reply.message, reply.hint)
        wish = partial(
            admit, staged=Path(reply.staged), priority=priority, again=again, added_by=added_by
        )
        job = await self._desk.ask(wish)
        self._say_taken(job)
        return job


def admit(queue: Queue, staged: Path, priority: str, *, again: bool, added_by: str) -> Job:
    """Make it a job, or leave nothing behind: the file is taken again when the disk is well.

    Raises:
        Duplicate.
        OSError: the disk.
    """
    try:
        return queue.admit(staged, priority, added_by=added_by, again=again)
    except (Duplicate, OSError):
        queue.discard(staged)
        raise


def admit_found(queue: Queue, staged: Path, priority: str) -> Job:
    """A file of the inbox: one that is a copy of a job by now becomes a failed job that says so.

    Raises:
        OSError: the disk.
    """
    try:
        try:
            return queue.admit(staged, priority, added_by="inbox")
        except Duplicate as duplicate:
            copies.set_complete_aside(staged, duplicate.message)
            return queue.admit(staged, priority, added_by="inbox")
    except OSError:
        queue.discard(staged)
        raise


def _may_be_a_file(change: Change, path: str) -> bool:
    """What goes away (we remove originals ourselves) and unfinished names need no look."""
    return change is not Change.deleted and not intake.is_unfinished(path.rpartition("/")[2])


def _counted(paths: Collection[Path]) -> str:
    """One by its name, many by their number."""
    if len(paths) > 1:
        return f"{len(paths)} files"
    return "".join(file_name_text(os.fsencode(path.name)) for path in paths)
