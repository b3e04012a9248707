"""Drives the trainer: one mailbox, one thing at a time, everything decided by `decide`.

Invariant: a job leaves `processing/` only when a manifest on disk lists it, or when it is set
aside. The intent is durable before its effect. At most one trainer runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, assert_never

import msgspec

from trainer_tui.daemon import after_end, completed, decide, intent
from trainer_tui.daemon.after_end import End, Record, Verdict
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.decide import Absent, Facts, Present
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.figures import SERIES_OF, Figures
from trainer_tui.daemon.history import History
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.safety import clock, crash, heartbeat, messages, processes
from trainer_tui.safety.errors import Corrupt, Refused
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
STEP_EVENT_EVERY_S = 0.05
LEFTOVER_GRACE_S = 5.0
LOOK_AGAIN_S = 5.0  # idle time passes without any event

Listener = Callable[[messages.FromTrainer], Coroutine[Any, Any, None]]


class Training:
    """Public methods run on the event loop. `until` waits for an effect."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        desk: Desk,
        bus: Bus,
        history: History,
        teller: Teller,
        entry: str,
        run_tag: str,
    ) -> None:
        self._workspace, self._settings, self._desk = workspace, settings, desk
        self._bus, self._history, self._teller = bus, history, teller
        self._entry, self._run_tag = entry, run_tag
        self.intent = intent.load(workspace.intent_file)
        self.figures = Figures()
        self.trainer: Trainer | None = None
        self.present = Present(ready=False)
        self.in_hand: int | None = None
        self.restarts = 0
        self.commits = 0
        self.ending = False
        self.exclusive = 0
        self.blocker = ""
        self.hold = ""
        self.last_end: Verdict | None = None
        self.after_commit: list[Callable[[completed.Committed, list[int]], None]] = []
        self._ledger = completed.Ledger(workspace)
        self._record = Record()
        self._failed: messages.Failed | None = None
        self._said_stopping = False
        self._resuming = False
        self._trained: set[int] = set()
        self._started_fractions: dict[int, float] = {}
        self._idle_since_s = 0.0
        self._back_off_until_s = 0.0
        self._last_step_event_s = 0.0
        self._mail: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._waiters: set[asyncio.Event] = set()

    # --- what others ask -------------------------------------------------------------------------

    def facts(self) -> Facts:
        now_s = clock.monotonic_s()
        trainer: Absent | Present
        if self.trainer is None:
            trainer = Absent(max(0.0, self._back_off_until_s - now_s))
        else:
            idle_s = now_s - self._idle_since_s if self.present.told_nothing_waits else 0.0
            trainer = replace(self.present, idle_s=idle_s)
        started = any(job.id not in self._trained for job in self._desk.processing)
        return Facts(
            wish=self.intent.training,
            trainer=trainer,
            release=self.intent.release,
            ending=self.ending,
            exclusive=self.exclusive > 0,
            blocker=self.blocker,
            hold=self.hold,
            work=started or self._desk.claimable,
            started_work=started or bool(self._desk.processing and self.trainer is None),
            renew=self._settings.needs_new_trainer(),
            idle_exit_s=self._settings.config.supervision.idle_exit_s,
        )

    def poke(self) -> None:
        """Something changed that `decide` looks at."""

        async def nothing() -> None:
            return

        self._mail.put_nowait(nothing)

    async def set_intent(
        self, wish: intent.Wish, by: str, why: str = "", *, release: bool = False
    ) -> None:
        """Durable when this returns; the effect follows. Raises OSError."""
        new = intent.wish(wish, by, why, release=release)
        await asyncio.to_thread(intent.save, self._workspace.intent_file, new)
        self.intent = new
        if wish in ("run", "stopped"):
            self._record, self._back_off_until_s = Record(), 0.0
        self.poke()

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `true()`; False when time ran out. Looked at after every event."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                while not true():
                    changed.clear()
                    await changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(changed)

    @contextlib.asynccontextmanager
    async def without_trainer(self, timeout_s: float) -> AsyncIterator[None]:
        """The block runs while no trainer does; afterwards the intent rules again.

        Raises:
            Refused: the trainer did not end in time.
        """
        self.exclusive += 1
        self.poke()
        try:
            if not await self.until(lambda: self.trainer is None, timeout_s):
                raise Refused(
                    f"the trainer did not end within {timeout_s:.0f} s", "trainer-tui status"
                )
            yield
        finally:
            self.exclusive -= 1
            self.poke()

    def send(self, message: messages.ToTrainer) -> bool:
        return self.trainer is not None and self.trainer.send(message)

    def skip(self, job_id: int) -> None:
        """Ask for it; `_refused` is the effect."""
        self.send(messages.Skip(job_id))

    def fraction_of(self, job_id: int) -> float | None:
        """Of a job in `processing/` that is not in hand: trained and not committed yet, or
        started; None when that is not known."""
        return 1.0 if job_id in self._trained else self._started_fractions.get(job_id)

    def settings_changed(self) -> None:
        """Tell the trainer what is live; the rest waits for the next one."""
        changes = self._settings.live_changes()
        if changes:
            self.send(messages.Reconfigure(changes))
        self.poke()

    def step_of_now(self) -> int:
        """Optimizer steps done by now, as the heartbeat says: newer than any message."""
        beat = heartbeat.read(self.trainer.heartbeat) if self.trainer else None
        return max(beat.global_step if beat else 0, self.figures.global_step or 0)

    def saved(self, step: int) -> bool:
        """Whether a committed checkpoint holds this step."""
        return self.figures.saved_step is not None and self.figures.saved_step >= step

    @property
    def resuming(self) -> bool:
        """A `Resume` was sent and not answered yet."""
        return self._resuming

    # --- the mailbox -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation."""
        await self.collect(quick=False)
        while True:
            await self._act()
            for waiter in self._waiters:
                waiter.set()
            left_s = self._back_off_until_s - clock.monotonic_s()
            wait_s = left_s + 0.01 if self.trainer is None and left_s > 0 else LOOK_AGAIN_S
            try:
                async with asyncio.timeout(wait_s):
                    handle = await self._mail.get()
            except TimeoutError:
                continue
            await handle()

    async def _act(self) -> None:
        """Do what `decide` says until it says nothing."""
        for _ in range(8):
            match decide.decide(self.facts()):
                case decide.Nothing():
                    return
                case decide.Spawn():
                    await self._spawn()
                case decide.Offer():
                    await self._offer()
                case decide.BecomeStopped():
                    await self.set_intent("stopped", self.intent.by, self.intent.why)
                case decide.Send(message):
                    self._send_control(message)
                case _ as never:
                    assert_never(never)

    def _send_control(
        self,
        message: messages.Pause | messages.Resume | messages.Stop | messages.NothingWaits,
    ) -> None:
        self.send(message)
        match message:
            case messages.Pause(release=release):
                asked: decide.Asked = "pause_release" if release else "pause"
                self.present = replace(self.present, asked=asked)
            case messages.Resume():
                self._resuming = True
                self.present = replace(self.present, asked="nothing", paused=False)
            case messages.Stop(after_file=after_file):
                if not self.present.ready and self.trainer is not None:
                    self.trainer.signal(signal.SIGTERM)  # loading: there is nothing to commit
                asked = "stop_after_file" if after_file else "stop"
                self.present = replace(self.present, asked=asked)
            case messages.NothingWaits():
                self._idle_since_s = clock.monotonic_s()
                self.present = replace(self.present, told_nothing_waits=True)
            case _ as never:
                assert_never(never)

    async def _spawn(self) -> None:
        config = await self._settings.freeze()
        page = self._workspace.state / "trainer.heartbeat"
        page.unlink(missing_ok=True)
        spec = messages.TrainerSpec(
            run_id=f"{clock.now_iso()[:19].replace(':', '')}-{secrets.token_hex(4)}",
            workspace=str(self._workspace.root),
            config=config.model_dump(mode="json"),
            heartbeat=str(page),
        )
        self.present, self.in_hand = Present(ready=False), None
        self._failed, self._said_stopping, self._resuming = None, False, False
        self._trained.clear()
        self.figures.epochs = config.epochs
        output = self._workspace.logs / "trainer.out"
        tag = f"{self._run_tag}:{spec.run_id}"
        self.trainer = Trainer(self._entry, spec, tag, output, self._on_message, self._on_end)
        log.info("trainer %d started", self.trainer.pid)

    async def _offer(self) -> None:
        job = next((job for job in self._desk.processing if job.id not in self._trained), None)
        if job is not None:
            await self._desk.begin_again(job.id)
        else:
            job = await self._desk.claim_next()
        if job is None:
            return
        self.in_hand = job.id
        self.present = replace(self.present, hungry=False, told_nothing_waits=False)
        self.send(messages.Train(job.id, job.name, str(job.folder), job.file_sha256))

    # --- what the trainer says -------------------------------------------------------------------

    def _on_message(self, trainer: Trainer, message: messages.FromTrainer) -> None:
        async def handle() -> None:
            if trainer is self.trainer:
                await self._handle(message)

        self._mail.put_nowait(handle)

    def _on_end(self, trainer: Trainer, wait_status: int) -> None:
        self._mail.put_nowait(lambda: self._ended(trainer, wait_status))

    async def _handle(self, message: messages.FromTrainer) -> None:
        match message:
            case messages.Ready():
                await self._ready(message)
            case messages.WantJob():
                self.in_hand = None
                self.figures.end_job()
                self.present = replace(self.present, hungry=True, told_nothing_waits=False)
            case messages.JobStarted(job_id=job_id):
                self.in_hand = job_id
                self.figures.start_job(message)
                await self._desk.started(message)
            case messages.StepDone():
                self._step(message)
            case messages.Evaluated():
                self._evaluated(message)
            case messages.JobTrained(job_id=job_id):
                self._trained.add(job_id)
                self.in_hand = None
            case messages.JobRefused():
                await self._refused(message)
            case messages.Committed():
                await self._committed(message)
            case messages.Paused():
                asked = self.present.asked if self.present.asked == "pause_release" else "nothing"
                self.present = replace(self.present, paused=True, asked=asked)
            case messages.Resumed():
                self._resuming = False
                self.present = replace(self.present, paused=False)
            case messages.Stopping():
                self._said_stopping = True
            case messages.Said(level=level, topic=topic, text=text, data=data):
                self._teller.say(level, topic, text, **data)
            case messages.Failed():
                self._failed = message
            case _ as never:
                assert_never(never)

    async def _ready(self, message: messages.Ready) -> None:
        self.figures.start(message)
        self.present = replace(self.present, ready=True)
        await self.collect(quick=False)
        where = message.checkpoint or "the base model"
        self._teller.say(
            "info",
            "trainer",
            f"training goes on from {where} at step {message.global_step}",
            device=message.device,
            precision=message.precision,
            attention=message.attention,
            notes=message.notes,
        )

    def _step(self, message: messages.StepDone) -> None:
        self._history.add_points(self.figures.step(message))
        now_s = clock.monotonic_s()
        if now_s - self._last_step_event_s >= STEP_EVENT_EVERY_S:
            self._last_step_event_s = now_s
            data = {
                "step": message.global_step,
                "loss": message.loss,
                "learning_rate": message.learning_rate,
                "grad_norm": message.grad_norm,
                "tokens_per_s": message.tokens_per_s,
                "supervised_tokens_per_s": message.supervised_tokens_per_s,
                "at": self.figures.last_sample_at,
            }
            self._bus.publish("step", data)

    def _evaluated(self, message: messages.Evaluated) -> None:
        found, best = self.figures.evaluated(message)
        self._history.add_points(found)
        data = {
            "step": message.global_step,
            "series": SERIES_OF.get(message.series, message.series),
            "loss": message.loss,
            "rows": message.rows,
            "whole": message.whole,
            "at": clock.now_iso(),
        }
        self._bus.publish("evaluated", data)
        if best and self.figures.seen_evaluations > 1:
            text = f"validation {message.loss:.4f} at step {message.global_step}: the best yet"
            self._teller.say("info", "validation", text)

    async def _refused(self, message: messages.JobRefused) -> None:
        self.in_hand = None
        self.figures.end_job()
        await self._desk.fail(
            message.job_id,
            message.error_class,
            message.message,
            message.hint,
            message.fraction,
        )
        level = "info" if message.error_class == "skipped" else "error"
        self._teller.say(
            level, "job", f"#{message.job_id} was set aside: {message.message}", job=message.job_id
        )

    async def _committed(self, message: messages.Committed) -> None:
        self.commits += 1
        self._record, self._back_off_until_s = Record(), 0.0
        self.figures.saved_step, self.figures.checkpoint = message.global_step, message.folder
        self._teller.say(
            "info",
            "checkpoint",
            f"{message.folder}: {message.bytes_written / 1e6:.1f} MB in {message.seconds:.1f} s",
            reason=message.reason,
        )
        await self.collect(quick=True)
        for job in self._desk.processing:
            if job.id == self.in_hand and job.attempts > 1:
                # Committed progress resets the count; what comes now is an attempt of its own.
                await self._desk.end_attempt(job.id, "progress")
                await self._desk.begin_again(job.id)

    async def collect(self, *, quick: bool) -> None:
        """Move what the newest manifest lists as completed out of `processing/`."""
        wanted = {job.id for job in self._desk.processing}
        try:
            found = await self._desk.aside(lambda: self._ledger.look(wanted, quick=quick))
        except Corrupt as problem:
            self._teller.say("error", "checkpoint", problem.message, hint=problem.hint)
            return
        if found is None:
            return
        self.figures.tokens_seen = found.manifest.tokens
        self.figures.supervised_tokens_seen = found.manifest.supervised_tokens
        if self.figures.saved_step is None:
            self.figures.saved_step = self.figures.global_step = found.manifest.global_step
            self.figures.lineage, self.figures.checkpoint = found.manifest.lineage, found.folder
        self._started_fractions = {
            cursor.job_id: (cursor.epoch * cursor.steps + cursor.step_index)
            / (cursor.steps * self._settings.in_force().epochs)
            for cursor in found.manifest.cursors
            if cursor.steps
        }
        done = []
        for job_id, entry in sorted(found.completed.items()):
            await self._desk.complete(job_id, entry)
            self._trained.discard(job_id)
            done.append(job_id)
            self._teller.say("info", "job", f"{entry.name} is done: {entry.rows} rows", job=job_id)
        for listener in self.after_commit:
            listener(found, done)

    # --- its end ---------------------------------------------------------------------------------

    async def _ended(self, trainer: Trainer, wait_status: int) -> None:
        if trainer is not self.trainer:
            return
        in_hand = next((job for job in self._desk.processing if job.id == self.in_hand), None)
        end = End(
            wait_status,
            asked_to_stop=self.present.asked in ("stop", "stop_after_file", "pause_release"),
            said_stopping=self._said_stopping,
            ready=self.present.ready,
            in_hand=in_hand.id if in_hand else None,
            attempts=in_hand.attempts if in_hand else 0,
        )
        await self._end_leftovers(trainer)
        await self.collect(quick=False)
        if in_hand is not None and in_hand.id not in {job.id for job in self._desk.processing}:
            end = replace(end, in_hand=None)  # it was completed by the last commit
        self.trainer, self.present, self.in_hand = None, Present(ready=False), None
        self._resuming = False
        self._trained.clear()
        self.figures.end_job()
        if end.meant or self._said_stopping:
            log.info("trainer %d ended as asked", trainer.pid)
            if end.in_hand is not None:
                await self._desk.end_attempt(end.in_hand, "interrupted")
        else:
            await self._crashed(trainer, end)

    async def _crashed(self, trainer: Trainer, end: End) -> None:
        self.restarts += 1
        finding = crash.classify(await asyncio.to_thread(self._evidence, trainer, end))
        supervision = self._settings.config.supervision
        verdict, self._record = after_end.judge(
            end, finding, self._record, supervision.attempts, supervision.backoff_s
        )
        self.last_end = verdict
        self._back_off_until_s = clock.monotonic_s() + verdict.wait_s
        self._teller.say(
            "error",
            "trainer",
            f"the trainer ended: {finding.text}",
            hint=finding.suggestion,
            error_class=str(finding.crash_class),
            action=str(finding.action),
            wait_status=end.wait_status,
            job=end.in_hand,
        )
        if end.in_hand is not None:
            await self._set_aside(end.in_hand, verdict)
        if verdict.then == "degrade":
            why = f"{finding.text}; training does not restart by itself any more"
            await self.set_intent("degraded", "daemon", why)
            self._teller.say("error", "training", why, hint=finding.suggestion)

    async def _set_aside(self, job_id: int, verdict: Verdict) -> None:
        finding = verdict.finding
        await self._desk.end_attempt(job_id, "crashed", str(finding.crash_class))
        if verdict.park:
            await self._desk.fail(
                job_id, str(finding.crash_class), finding.text, finding.suggestion
            )
            self._teller.say("error", "job", f"#{job_id} was set aside: {finding.text}", job=job_id)

    def _evidence(self, trainer: Trainer, end: End) -> crash.Evidence:
        """Gathered in a thread."""
        report = msgspec.to_builtins(self._failed) if self._failed else None
        return crash.Evidence(
            exit_code=end.wait_status,
            reported=report,
            ended_by_us=trainer.ended_by_us,
            oom_kills=crash.oom_kill_count() - trainer.oom_kills_before,
            fault_text=trainer.last_words(),
            disk_free_bytes=shutil.disk_usage(self._workspace.root).free,
        )

    async def _end_leftovers(self, trainer: Trainer) -> None:
        """What the trainer started and left behind: time to finish a write, then the end."""
        deadline_s = clock.monotonic_s() + LEFTOVER_GRACE_S
        while left := await asyncio.to_thread(processes.tagged, trainer.tag):
            if clock.monotonic_s() >= deadline_s:
                for process in left:
                    processes.send(process, signal.SIGKILL)
                self._teller.say("warning", "trainer", f"{len(left)} left-over processes ended")
                return
            await asyncio.sleep(0.1)
