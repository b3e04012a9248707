"""What the trainer says, taken in: figures, events, and the jobs that a commit completed.

Invariant: a job leaves `processing/` only when a manifest on disk lists it, or when it is set
aside; a message alone completes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import assert_never

from trainer_tui.daemon import again, ledger_note
from trainer_tui.daemon.completed import Committed
from trainer_tui.daemon.figures import SERIES_OF
from trainer_tui.daemon.training_state import Means, TrainingState
from trainer_tui.safety import clock, crash, manifest, messages
from trainer_tui.safety.errors import Corrupt, TrainerTuiError, Unreadable
from trainer_tui.safety.manifest import LedgerEntry, Manifest

STEP_EVENT_EVERY_S = 0.05
QUEUE_FILES = 2  # from so many files on, or so long a training, its end is told
QUEUE_SECONDS = 60.0


class Hearing(TrainingState):
    """See `Training`."""

    def __init__(self, means: Means) -> None:
        super().__init__(means)
        self._last_step_event_s = 0.0
        self._done_in_a_row: list[LedgerEntry] = []

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
                await self._means.desk.started(message)
            case messages.StepDone():
                self._step(message)
            case messages.Evaluated():
                self._evaluated(message)
            case messages.JobTrained(job_id=job_id):
                self._trained.add(job_id)
                self.in_hand = None
                self._means.desk.look_again()
            case messages.JobRefused():
                await self._refused(message)
            case messages.WantRollback():
                for listener in self.rollback_wished:
                    listener(message)
            case messages.Committed():
                await self._committed(message)
            case messages.Paused():
                asked = "nothing" if self.present.asked == "pause" else self.present.asked
                self.present = replace(self.present, paused=True, asked=asked)
            case messages.Resumed():
                self._resuming = False
                self.figures.stand_still()
                self.present = replace(self.present, paused=False)
            case messages.HasLetGo():
                self.present = replace(self.present, aside=self.present.asked == "let_go")
            case messages.TakenUp(loads=loads):
                await self._taken_up(loads)
            case messages.Stopping():
                self._said_stopping = True
            case messages.Said(level=level, topic=topic, text=text, data=data):
                self._means.teller.say(level, topic, text, **data)
                if topic == "waiting":
                    self.trainer_waits = text if level == "warning" else ""
            case messages.Failed():
                self._failed = message
            case _ as never:
                assert_never(never)

    async def _ready(self, message: messages.Ready) -> None:
        self.figures.start(message)
        self.present = replace(self.present, ready=True, reloads=False)
        self.trainer_waits = ""
        await self.collect(quick=False)
        await self._train_lost_again(message.checkpoint)
        if message.checkpoint:
            self._means.history.go_on_from(message.global_step)
        where = message.checkpoint or "the base model"
        self._means.teller.say(
            "info",
            "trainer",
            f"training goes on from {where} at step {message.global_step}",
            device=message.device,
            precision=message.precision,
            attention=message.attention,
            notes=message.notes,
        )

    async def _taken_up(self, loads: bool) -> None:
        """With `loads`, as after a start: nothing is in hand, and `Ready` is on its way."""
        self.figures.stand_still()
        asked = "nothing" if self.present.asked == "take_up" else self.present.asked
        self.present = replace(self.present, asked=asked, aside=False)
        if not loads:
            return
        desk, job_id = self._means.desk, self.in_hand
        if job_id is not None and job_id in {job.id for job in desk.processing}:
            await desk.end_attempt(job_id, "interrupted")
        self.in_hand = None
        self._trained.clear()
        self.figures.end_job()
        self.present = replace(
            self.present, ready=False, reloads=True, hungry=False, told_nothing_waits=False
        )

    async def _train_lost_again(self, checkpoint: str) -> None:
        """Files whose only checkpoints are damaged: the one in use has not learnt them."""
        desk, workspace = self._means.desk, self._means.workspace
        if not checkpoint:
            self._means.history.begin_again()
            if said := await desk.aside(lambda: ledger_note.forget(workspace)):
                self._means.teller.say("error", "checkpoint", said)
            return
        try:
            in_use = await desk.aside(lambda: manifest.read(workspace.current_model / checkpoint))
        except Corrupt as problem:
            self._means.teller.say("error", "checkpoint", problem.message)
            return
        try:
            entries = await desk.aside(lambda: ledger_note.lost(workspace, in_use))
        except Corrupt as problem:
            text = f"whether files were lost with a damaged checkpoint is not known: {problem}"
            self._means.teller.say("error", "checkpoint", text, hint=problem.hint)
            if isinstance(problem, Unreadable):
                return  # this may pass: the next start looks again
            entries = ()
        if await self._queue_again(entries):
            await desk.aside(lambda: ledger_note.settle(workspace, in_use))

    async def _queue_again(self, entries: tuple[LedgerEntry, ...]) -> bool:
        """False: the disk refused some; the next start tries again."""
        desk, say = self._means.desk, self._means.teller.say
        jobs, gone = await desk.ask(partial(again.lost, entries=entries)) if entries else ([], [])
        done = True
        for job in jobs:
            try:
                new = await desk.ask(partial(again.train_again, job_id=job.id, added_by="daemon"))
            except TrainerTuiError:
                gone.append(f"#{job.id} {job.name}")
            except OSError as problem:
                text = f"#{job.id} {job.name} was lost with a damaged checkpoint: {problem}"
                say("error", "job", text, hint="it is queued at the trainer's next start")
                done = False
            else:
                text = f"#{job.id} {job.name} was lost with a damaged checkpoint"
                say("warning", "job", f"{text}: again as #{new.id}", job=new.id)
        for name in gone:
            text = f"{name} was lost with a damaged checkpoint, and its job is no longer kept"
            say("warning", "job", text, hint="to train it again, add the file again")
        return done

    def _step(self, message: messages.StepDone) -> None:
        self._means.history.add_points(self.figures.step(message))
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
            self._means.bus.publish("step", data)

    def _evaluated(self, message: messages.Evaluated) -> None:
        found, best = self.figures.evaluated(message)
        self._means.history.add_points(found)
        data = {
            "step": message.global_step,
            "series": SERIES_OF.get(message.series, message.series),
            "loss": message.loss,
            "rows": message.rows,
            "whole": message.whole,
            "at": clock.now_iso(),
        }
        self._means.bus.publish("evaluated", data)
        if best and self.figures.seen_evaluations > 1:
            text = f"validation {message.loss:.4f} at step {message.global_step}: the best yet"
            self._means.teller.say("info", "validation", text)

    async def _refused(self, message: messages.JobRefused) -> None:
        self.in_hand = None
        self.figures.end_job()
        await self._means.desk.fail(
            message.job_id,
            message.error_class,
            message.message,
            message.hint or crash.advice(message.error_class),
            message.fraction,
        )
        level = "info" if message.error_class == "skipped" else "error"
        self._means.teller.say(
            level, "job", f"#{message.job_id} was set aside: {message.message}", job=message.job_id
        )

    async def _committed(self, message: messages.Committed) -> None:
        self.aftermath.begin_anew()
        self.figures.saved_step, self.figures.checkpoint = message.global_step, message.folder
        self._means.teller.say(
            "info",
            "checkpoint",
            f"{message.folder}: {message.bytes_written / 1e6:.1f} MB in {message.seconds:.1f} s",
            reason=message.reason,
        )
        await self.collect(quick=True)
        for job in self._means.desk.processing:
            if job.id == self.in_hand and job.attempts > 1:
                # Committed progress resets the count; what comes now is an attempt of its own.
                await self._means.desk.end_attempt(job.id, "progress")
                await self._means.desk.begin_again(job.id)
        if message.reason in ("asked", "unchanged"):
            self.saves_answered += 1

    async def collect(self, *, quick: bool) -> None:
        """Move what the newest manifest lists as completed out of `processing/`."""
        wanted = {job.id for job in self._means.desk.processing}
        try:
            found, said = await self._means.desk.aside(lambda: self._look(wanted, quick=quick))
        except Corrupt as problem:
            self._means.teller.say("error", "checkpoint", problem.message, hint=problem.hint)
            return
        if said:
            self._means.teller.say("error", "checkpoint", said)
        if found is None:
            return
        self.figures.tokens_seen = found.manifest.tokens
        self.figures.lr_factor = found.manifest.lr_factor
        self.figures.supervised_tokens_seen = found.manifest.supervised_tokens
        if self.figures.saved_step is None:
            self.figures.saved_step = self.figures.global_step = found.manifest.global_step
            self.figures.lineage, self.figures.checkpoint = found.manifest.lineage, found.folder
        self._started_fractions = self._fractions(found.manifest)
        done = []
        for job_id, entry in sorted(found.completed.items()):
            await self._means.desk.complete(job_id, entry)
            self._trained.discard(job_id)
            done.append(job_id)
            self._means.teller.say(
                "info", "job", f"#{job_id} {entry.name} is done: {entry.rows} rows", job=job_id
            )
            self._done_in_a_row.append(entry)
        if done:
            self._say_if_queue_is_done()
        for listener in self.after_commit:
            listener(found, done)

    def _look(self, wanted: set[int], *, quick: bool) -> tuple[Committed | None, str]:
        found = self._ledger.look(wanted, quick=quick)
        said = ledger_note.advance(self._means.workspace, found.manifest) if found else ""
        return found, said

    def _say_if_queue_is_done(self) -> None:
        """Nothing is left that may start: worth a word after some work, not after every file that
        comes alone."""
        desk, done = self._means.desk, self._done_in_a_row
        if desk.processing or desk.claimable or desk.unchecked:
            return
        self._done_in_a_row = []
        seconds = sum(entry.seconds for entry in done)
        if len(done) < QUEUE_FILES and seconds < QUEUE_SECONDS:
            return
        files = "1 file" if len(done) == 1 else f"{len(done)} files"
        rows = sum(entry.rows for entry in done)
        text = f"the queue is done: {files}, {rows} rows in {seconds / 60:.0f} min of training"
        if held := desk.counts.get("waiting", 0):
            text += f"; {held} held or scheduled"
        self._means.teller.say("info", "queue", text, jobs=[entry.job_id for entry in done][-100:])

    def _fractions(self, newest: Manifest) -> dict[int, float]:
        """How much of each started job is trained, as the checkpoint says."""
        epochs = self._means.settings.in_force().epochs
        return {
            cursor.job_id: (cursor.epoch * cursor.steps + cursor.step_index)
            / (cursor.steps * epochs)
            for cursor in newest.cursors
            if cursor.steps
        }
