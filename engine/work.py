"""One file in hand: its steps, its evaluations, its end.

Invariant: `progress` moves only after an optimizer step was queued on the device, and a step that
ran out of memory has moved nothing. Figures may be read a step late; what they decide (NaN) still
comes before anything is committed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer_tui.engine import deaths, incidents, rng
from trainer_tui.engine.evaluate import Result, Series
from trainer_tui.engine.feed import Job
from trainer_tui.engine.incidents import Incident
from trainer_tui.engine.measuring import Measuring
from trainer_tui.engine.metrics import Sink
from trainer_tui.engine.room import Room
from trainer_tui.engine.schedule import Position, learning_rate
from trainer_tui.engine.session import Boundary, Session
from trainer_tui.engine.step import PendingStep, RowsFailed, StepFigures
from trainer_tui.engine.step_mark import Place, StepMark
from trainer_tui.engine.suspects import Suspects
from trainer_tui.safety import clock
from trainer_tui.safety.heartbeat import Phase
from trainer_tui.safety.manifest import Cursor, LedgerEntry
from trainer_tui.safety.messages import JobStarted, JobTrained, StepDone

log = logging.getLogger("trainer.work")


class TooManyNans(Exception):
    """Updates were skipped too often in a row; the state before the first is still at hand."""


class StopFile(Exception):
    """The ladder says: set this file aside; keep what it taught, or ask for a rollback."""

    def __init__(self, incident: Incident, *, rollback: bool) -> None:
        super().__init__(incident.text)
        self.incident = incident
        self.rollback = rollback


@dataclass(frozen=True, slots=True)
class _Late:
    """A step whose figures are still to be read, with the boundary before it."""

    pending: PendingStep
    documents: list[int]
    before: Boundary
    global_step: int
    cursor: Cursor
    learning_rate: float


class Work:
    """Trains one job. The loop calls `step` until `job.finished`, then `finish`."""

    def __init__(
        self,
        session: Session,
        job: Job,
        measuring: Measuring,
        sinks: list[Sink],
        on_oom: Callable[[], None],
    ) -> None:
        self.job = job
        self._session = session
        self._measuring = measuring
        self._evaluator = measuring.evaluator
        self._fixed = measuring.fixed
        self._sinks = sinks
        self._room = Room(session, on_oom)
        self._suspects = Suspects(session, job)
        self._mark = StepMark(session.workspace)
        self._died_at = deaths.place_of(session.workspace, job.train)
        self.left_death_behind = False  # the last step is one that ended a process before
        self._late: deque[_Late] = deque()
        self._behaviour: dict[str, float] = {}
        # On a GPU one step's figures may wait while the next step is being queued.
        self._read_ahead = 1 if session.device.type == "cuda" else 0

    def start(self) -> None:
        """Say what will be trained; a fresh file is measured once before its first step."""
        session, job = self._session, self.job
        session.watch = session.watch.of_job(job.train.job_id)
        session.pinned[job.train.job_id] = job.pinned
        session.stepper.shape = job.profile.shape
        session.read_late_figures = self.read_all
        session.control.say(
            JobStarted(
                job.train.job_id,
                job.steps_total,
                job.steps_done,
                job.rows,
                job.token_count * job.pinned.epochs,
                job.supervised_count * job.pinned.epochs,
                job.notes,
            )
        )
        session.meter.interrupted()
        if job.steps_done == 0:
            self.measure_whole()
            self._note_val_before()

    def measure_whole(self, *, wanted: bool = False) -> None:
        """The fixed set, unless it was measured at this step. Raises TooManyNans, StopFile."""
        self.read_all()
        incident = self._measuring.whole(wanted=wanted)
        if incident is not None:
            self._act(incident)

    def _note_val_before(self) -> None:
        progress, job_id = self._session.progress, self.job.train.job_id
        loss = self._measuring.of_set(self.job.cursor.validation_set)
        if loss is not None and self._measuring.is_fresh:
            noted = {**progress.val_before, job_id: loss}
            self._session.progress = dataclasses.replace(progress, val_before=noted)

    def step(self) -> None:
        """One optimizer step, and what is due after it.

        Raises:
            TooManyNans, StopFile.
            torch.OutOfMemoryError: even the smallest micro-batch does not fit.
        """
        session, job = self._session, self.job
        session.heart.beat(Phase.DATA)
        place = self._place()
        self.left_death_behind = self._died_at == place
        with self._mark.running(place):
            self._run(job.next_packs(), job.advanced)
        while len(self._late) > self._read_ahead:
            self._read(self._late.popleft())
        step = session.progress.global_step
        if step % session.config.eval_steps == 0 and not job.finished:
            self._evaluate(step // session.config.eval_steps)

    def _place(self) -> Place:
        train, cursor = self.job.train, self.job.cursor
        named = train.job_id, train.name, train.folder, train.file_sha256
        return Place(*named, cursor.plan, cursor.epoch, cursor.step_index)

    def _run(self, packs: list[list[int]], next_cursor: Callable[[], Cursor]) -> None:
        """An optimizer step over these documents; nothing left of it: only the cursor moves."""
        session, job = self._session, self.job
        position = Position(session.progress.global_step, job.steps_done, job.steps_total)
        rate = learning_rate(session.schedule, position)
        before = session.boundary()
        session.heart.beat(Phase.MICRO_STEP)
        pending = None
        retried = False
        while packs and pending is None:
            try:
                pending = session.stepper.run([job.documents(pack) for pack in packs], rate)
            except torch.OutOfMemoryError as problem:
                self._room.make(problem)
                rng.restore(before.rng, session.device.type, session.device)
            except RowsFailed as problem:
                assert problem.__cause__ is not None
                kept = None if retried else self._suspects.without_guilty(packs, before)
                if kept is None:
                    raise problem.__cause__ from None
                packs, retried = kept, True
        cursor = next_cursor()
        job.seek(cursor)
        if pending is None:
            session.progress = session.progress.with_cursor(cursor)
            return
        indexes = [index for pack in packs for index in pack]
        documents = job.documents(indexes)
        tokens = sum(len(ids) for ids, _ in documents)
        supervised = sum(int(mask[1:].sum()) for _, mask in documents)
        session.progress = session.progress.after_step(cursor, tokens, supervised, 0.0)
        step = session.progress.global_step
        session.heart.beat(Phase.MICRO_STEP, global_step=step)
        self._late.append(_Late(pending, indexes, before, step, cursor, rate))

    def read_all(self) -> None:
        """Read every figure that is still to be read. The host may wait for the device here."""
        while self._late:
            self._read(self._late.popleft())

    def _read(self, late: _Late) -> None:
        session, job = self._session, self.job
        figures = late.pending.read()
        seconds = session.meter.add(figures)
        self._evaluator.budget.earn(seconds)
        self._add_seconds(seconds)
        watch, incident = incidents.after_step(
            session.watch, figures.loss, figures.grad_norm, figures.skipped
        )
        session.watch = watch
        if figures.skipped:
            skipped = session.progress.skipped_steps + 1
            session.progress = dataclasses.replace(session.progress, skipped_steps=skipped)
            session.last_good = session.last_good or late.before
        else:
            session.last_good = None
        made_up = None
        if figures.skipped and session.watch.nan_steps == 1:
            made_up = self._suspects.without_guilty([late.documents], session.boundary())
        if late.global_step % session.config.log_steps == 0 or figures.skipped:
            self._say(late, figures)
        if incident is not None:
            self._act(incident)
        if made_up is not None:
            self._take_back(late)
        if made_up:  # the skipped step's other rows train now, in a step of their own
            self._run(made_up, lambda: job.cursor)

    def _take_back(self, late: _Late) -> None:
        """What a skipped step did not train is not counted as trained: it is made up for."""
        progress, documents = self._session.progress, self.job.documents(late.documents)
        self._session.progress = dataclasses.replace(
            progress,
            tokens=progress.tokens - sum(len(ids) for ids, _ in documents),
            supervised_tokens=progress.supervised_tokens
            - sum(int(mask[1:].sum()) for _, mask in documents),
        )

    def _add_seconds(self, seconds: float) -> None:
        progress, job_id = self._session.progress, self.job.train.job_id
        spent = {**progress.spent_s, job_id: progress.spent_s.get(job_id, 0.0) + seconds}
        self._session.progress = dataclasses.replace(progress, spent_s=spent)

    def _say(self, late: _Late, figures: StepFigures) -> None:
        session, job = self._session, self.job
        interval = session.meter.report()
        cursor = late.cursor
        done = cursor.epoch * cursor.steps + cursor.step_index
        message = StepDone(
            global_step=late.global_step,
            job_id=cursor.job_id,
            epoch=min(cursor.epoch, job.pinned.epochs - 1),
            step_index=done,
            steps=job.steps_total,
            loss=figures.loss,
            learning_rate=late.learning_rate,
            grad_norm=figures.grad_norm,
            tokens=interval.tokens,
            supervised_tokens=interval.supervised_tokens,
            tokens_per_s=interval.tokens_per_s,
            supervised_tokens_per_s=interval.supervised_tokens_per_s,
            step_s=interval.step_s,
            skipped=figures.skipped,
            memory_bytes=interval.memory_bytes,
            mfu=interval.mfu,
            extra={
                "step_s_p50": interval.step_s_p50,
                "step_s_p90": interval.step_s_p90,
                **self._behaviour,
            },
        )
        session.control.say(message, droppable=True)
        for sink in self._sinks:
            values = {"loss": figures.loss, "learning_rate": late.learning_rate}
            sink.step(late.global_step, values | {"grad_norm": figures.grad_norm})

    def _act(self, incident: Incident) -> None:
        """Tell, and take the rung of the ladder whose turn it is. Raises TooManyNans, StopFile."""
        session = self._session
        if incident.kind == "nan":
            session.tell("warning", "incident", incident.text, kind="nan", **incident.figures)
            if session.watch.nan_steps >= session.config.ladder.nan_steps_before_stop:
                raise TooManyNans
            return
        session.watch, rung = incidents.climb(session.watch, incident.kind, session.config.ladder)
        session.tell(
            "warning",
            "incident",
            f"{incident.text}; {RUNG_TEXTS[rung]}",
            hint="trainer-tui rate shows the factor and sets it" if rung == "halve_lr" else "",
            kind=incident.kind,
            rung=rung,
            **incident.figures,
        )
        match rung:
            case "notify":
                pass
            case "halve_lr":
                factor = max(incidents.LOWEST_FACTOR, session.progress.lr_factor / 2)
                session.progress = dataclasses.replace(session.progress, lr_factor=factor)
            case "stop_file" | "rollback":  # the daemon rolls back once the file is set aside
                raise StopFile(incident, rollback=rung == "rollback")

    def _evaluate(self, turn: int) -> None:
        session, job = self._session, self.job
        self.read_all()
        session.heart.beat(Phase.EVAL)
        if self._fixed is not None:
            self._publish(self._evaluator.slice(self._fixed, turn))
            self._behaviour = self._evaluator.behaviour(self._fixed, job.profile)
        count = self._evaluator.slice_rows
        holdout = _series_of(job, "holdout", job.split.holdout[:count].tolist())
        if holdout is not None:  # the same rows every time: small sets do not rotate
            self._publish(self._evaluator.slice(holdout, 0))
            probe = _series_of(job, "probe", job.first_trained(min(count, holdout.count)))
            if probe is not None:
                self._publish(self._evaluator.slice(probe, 0))
        session.meter.interrupted()
        session.heart.beat(Phase.MICRO_STEP)

    def _publish(self, result: Result | None) -> None:
        incident = self._measuring.publish(result)
        if incident is not None:
            self._act(incident)

    def finish(self) -> None:
        """Every step is done: measure, and put the file into the ledger of the next commit."""
        session, job = self._session, self.job
        # A version of every file carries what the file did; otherwise when the time is paid for.
        self.measure_whole(wanted=session.config.versioning.after_every_file)
        session.last_good = None  # an update skipped at its end stays skipped: no good one follows
        same_set = self._fixed is not None and self._fixed.set_id == job.cursor.validation_set
        comparable = same_set and self._measuring.is_fresh
        progress, train = session.progress, job.train
        entry = LedgerEntry(
            job_id=train.job_id,
            name=train.name,
            file_sha256=train.file_sha256,
            rows=job.rows,
            tokens=job.token_count * job.pinned.epochs,
            supervised_tokens=job.supervised_count * job.pinned.epochs,
            steps=job.steps_total,
            epochs=job.pinned.epochs,
            global_step=progress.global_step,
            completed_at=clock.now_iso(),
            seconds=round(progress.spent_s.get(train.job_id, 0.0), 3),
            val_before=progress.val_before.get(train.job_id) if same_set else None,
            val_after=progress.validation.get("fixed") if comparable else None,
            rows_excluded=job.cursor.rows_excluded,
        )
        session.progress = progress.after_file(entry)
        session.pinned.pop(train.job_id, None)
        session.control.say(JobTrained(train.job_id, progress.global_step))
        self.close()

    def close(self) -> None:
        self.read_all()
        self._session.read_late_figures = lambda: None
        self._mark.close()
        self.job.tokens.close()


RUNG_TEXTS = {
    "notify": "training goes on",
    "halve_lr": "the learning rate is halved",
    "stop_file": "the file is set aside",
    "rollback": "the file is set aside and the version before it is asked for",
}


def _series_of(job: Job, name: str, indexes: list[int]) -> Series | None:
    if not indexes:
        return None
    set_id = f"{job.train.file_sha256[:12]}-{len(indexes)}"
    return Series(name, set_id, len(indexes), lambda i: job.documents([indexes[i]])[0])
