"""The trainer's life after loading: hear what is asked, do a step, commit when due, leave well.

A state says what the trainer is doing; messages and finished steps move it on. Every request is
acted on between two steps, so within one optimizer step. The daemon gone or a SIGTERM: the step
is finished, everything is committed, and the trainer leaves with 0.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from trainer_tui.engine.aside import another_stands, lock_again
from trainer_tui.engine.commit_policy import Reason
from trainer_tui.engine.feed import JobRefusal, Opener
from trainer_tui.engine.measuring import Measuring
from trainer_tui.engine.saver import Saver
from trainer_tui.engine.session import Session
from trainer_tui.engine.states import Aside, Elsewhere, Halted, Hungry, Leaving, State, Training
from trainer_tui.engine.work import StopFile, Work
from trainer_tui.safety import manifest
from trainer_tui.safety.heartbeat import Phase
from trainer_tui.safety.messages import (
    Committed,
    HasLetGo,
    JobRefused,
    JobTrained,
    LetGo,
    NothingWaits,
    Pause,
    Paused,
    Reconfigure,
    Resume,
    Resumed,
    SaveNow,
    Skip,
    Stop,
    Stopping,
    TakenUp,
    TakeUp,
    ToTrainer,
    Train,
    WantJob,
    WantRollback,
)

log = logging.getLogger("trainer.loop")
BUSY_WAIT_S = 0.05


class Loop:
    """`make_work` turns an opened job into the work on it; `idle_measuring` measures without."""

    def __init__(
        self,
        session: Session,
        opener: Opener,
        make_work: Callable[..., Work],
        idle_measuring: Callable[[Opener], Measuring],
        *,
        halted: bool = False,
    ) -> None:
        self._session = session
        self._opener = opener
        self._make_work = make_work
        self._idle_measuring = idle_measuring
        self._saver = Saver(session)
        self._state: State = Halted(None) if halted else Hungry()
        self._unheard: list[ToTrainer] = []  # while the model on disk is not ours
        self._offered: deque[Train] = deque()
        self._stop_after_file = False
        ledger = session.workspace.ledger
        listed = manifest.ledger_entries(ledger, session.progress.ledger)
        self._completed = {entry.job_id for entry in listed}

    def run(self) -> Elsewhere | None:
        """Until it is time to leave; everything is committed then. Or until another state is to be
        loaded: nothing is in hand then, and a new loop goes on.

        Raises:
            SaveFailed, NotFinite, TooManyNans: it cannot go on (see entry.py).
        """
        self._session.control.say(WantJob())
        while True:
            self._hear()
            match self._state:
                case Leaving() as leaving:
                    self._leave(leaving)
                    return None
                case Elsewhere() as elsewhere:
                    return elsewhere
                case Training(work):
                    self._go_on(work)
                case Hungry() | Halted():
                    self._rest()
                case Aside() as aside:
                    self._stand_aside(aside)
                case _ as never:
                    assert_never(never)

    # --- doing -----------------------------------------------------------------------------------

    def _go_on(self, work: Work) -> None:
        try:
            if work.job.finished:
                self._finish_file(work)
            else:
                work.step()
                if not work.job.finished:  # the end of a file has a commit rule of its own
                    self._saver.poll()
                    if self._saver.due() is not None and not self._saver.busy:
                        work.measure_whole()  # when time allows: a checkpoint says how good it is
                    self._saver.if_due()
                    if work.left_death_behind:
                        self._saver.begin("suspect")  # progress: attempts count anew from here
        except StopFile as stop:
            self._stopped_by(work, stop)

    def _finish_file(self, work: Work) -> None:
        work.finish()
        self._completed.add(work.job.train.job_id)
        self._saver.poll()
        self._saver.if_due(at_file_end=True)
        self._ask()

    def _ask(self) -> None:
        self._state = Hungry()
        if self._stop_after_file:  # done or set aside: either is the file's end
            self._state = Leaving("stopped after the file", "stop")
        elif self._offered:
            self._take(self._offered.popleft())
        else:
            self._session.control.say(WantJob())

    def _rest(self) -> None:
        session = self._session
        self._be_in(Phase.PAUSED if isinstance(self._state, Halted) else Phase.IDLE)
        if self._saver.busy:
            self._saver.poll(BUSY_WAIT_S)
        else:
            session.control.wait(None)

    def _be_in(self, phase: Phase) -> None:
        if self._session.heart.phase is not phase:
            self._session.heart.beat(phase)

    def _stand_aside(self, aside: Aside) -> None:
        """Everything is committed first. That begins at once and waits for nothing else: when it
        turns out that nothing will be restored, training goes on beside the commit."""
        session, saver = self._session, self._saver
        if aside.free:
            self._be_in(Phase.PAUSED)
            session.control.wait(None)
        elif saver.busy:
            self._be_in(Phase.PERSIST)
            saver.poll(BUSY_WAIT_S)
        elif saver.anything_unsaved:
            saver.begin("restore")
        else:
            session.lock.let_go()
            self._state = replace(aside, free=True)
            session.control.say(HasLetGo(session.progress.global_step))

    def _leave(self, leaving: Leaving) -> None:
        session = self._session
        session.heart.beat(Phase.SHUTDOWN)
        self._saver.now(leaving.commit)
        session.control.say(Stopping(session.progress.global_step, leaving.reason))

    # --- hearing ---------------------------------------------------------------------------------

    def _hear(self) -> None:
        control = self._session.control
        while control.urgent and not isinstance(self._state, Leaving | Elsewhere):
            if self._read_late():
                continue
            if control.daemon_gone:
                self._state = Leaving("the daemon is gone", "daemon_gone")
            elif control.stop_signal:
                self._state = Leaving("asked by a signal", "stop")
            elif (message := control.take()) is not None:
                self._obey(message)
            else:
                return

    def _read_late(self) -> bool:
        """What the last step's figures decide comes before what is asked; whether they decided."""
        if isinstance(self._state, Training):
            work = self._state.work
            try:
                work.read_all()
            except StopFile as stop:
                self._stopped_by(work, stop)
                return True
        return False

    def _obey(self, message: ToTrainer) -> None:
        if isinstance(self._state, Aside):
            return self._obey_aside(self._state, message)
        match message:
            case Train():
                self._offer(message)
            case NothingWaits():
                self._saver.begin("queue_dry")
            case Pause(release):
                self._pause(release)
            case Resume():
                self._resume()
            case Stop(after_file):
                self._stop(after_file)
            case Skip(job_id):
                self._skip(job_id)
            case SaveNow(evaluate_whole):
                self._save_now(evaluate_whole)
            case Reconfigure(values):
                self._session.reconfigure(values)
            case LetGo():
                self._stop_after_file = False  # asked again afterwards, if it is still wished
                if isinstance(self._state, Hungry | Training | Halted):
                    self._state = Aside(self._state)
            case TakeUp():
                log.warning("asked to take up what was not let go of")
            case _ as never:
                assert_never(never)

    def _obey_aside(self, aside: Aside, message: ToTrainer) -> None:
        """What might commit or train waits until the model on disk is ours again."""
        match message:
            case TakeUp():
                self._take_up(aside)
            case LetGo():
                if aside.free:
                    self._session.control.say(HasLetGo(self._session.progress.global_step))
            case Stop(after_file=False):
                self._state = Leaving("stopped", "stop")
            case Reconfigure(values):
                self._session.reconfigure(values)
            case _:
                self._unheard.append(message)

    def _take_up(self, aside: Aside) -> None:
        session = self._session
        if aside.free and not lock_again(session):
            return  # it has to leave, and will hear why
        loads = aside.free and another_stands(session)
        session.control.say(TakenUp(session.progress.global_step, loads))
        unheard, self._unheard = self._unheard, []
        session.control.put_back(unheard)
        session.meter.interrupted()
        match aside.before:
            case Training(work) | Halted(Work() as work) if loads:
                work.close()
            case Training():
                session.heart.beat(Phase.MICRO_STEP)
            case _:
                pass
        self._state = Elsewhere(isinstance(aside.before, Halted)) if loads else aside.before

    def _offer(self, train: Train) -> None:
        match self._state:
            case Hungry():
                self._take(train)
            case Training(work) | Halted(Work() as work) if work.job.train.job_id == train.job_id:
                log.warning("job %d is in hand already", train.job_id)
            case _:
                self._offered.append(train)

    def _pause(self, release: bool) -> None:
        session = self._session
        if release:
            self._state = Leaving("paused, the GPU is free", "pause")
            return
        self._saver.now("pause")
        match self._state:
            case Training(work):
                self._state = Halted(work)
            case Hungry():
                self._state = Halted(None)
            case _:
                pass  # paused already
        session.control.say(Paused(session.progress.global_step))

    def _resume(self) -> None:
        session = self._session
        self._stop_after_file = False
        session.control.say(Resumed(session.progress.global_step))
        match self._state:
            case Halted(Work() as work):
                session.meter.interrupted()
                session.heart.beat(Phase.MICRO_STEP)
                self._state = Training(work)
            case Halted(None):
                self._state = Hungry()
                if self._offered:
                    self._take(self._offered.popleft())
            case _:
                pass

    def _stop(self, after_file: bool) -> None:
        if after_file and isinstance(self._state, Training):
            self._stop_after_file = True
        else:
            self._state = Leaving("stopped", "stop")

    def _save_now(self, evaluate_whole: bool = False) -> None:
        """Answered in every case: somebody waits for it."""
        session = self._session
        measured = session.progress.measured
        if evaluate_whole:
            self._measure_whole()
        again = session.progress.measured != measured or self._saver.rate_changed
        if not self._saver.now("asked", again=again):
            self._say_saved("unchanged")

    def _say_saved(self, reason: str) -> None:
        step, folder = self._session.saved_step, self._session.progress.parent
        self._session.control.say(Committed(step, folder, 0, 0.0, reason))

    def _measure_whole(self) -> None:
        """Somebody makes a version: it carries the loss of this very step."""
        match self._state:
            case Training(work) | Halted(Work() as work):
                try:
                    work.measure_whole(wanted=True)
                except StopFile as stop:
                    self._stopped_by(work, stop)
            case Hungry() | Halted(None):
                self._idle_measuring(self._opener).whole(wanted=True)
            case _:
                pass  # leaving

    def _skip(self, job_id: int) -> None:
        match self._state:
            case Training(work) | Halted(Work() as work) if work.job.train.job_id == job_id:
                text = f"skipped at {work.job.fraction:.0%}"
                self._set_aside(work, "skipped", text, "skip")
            case _:
                # Done or not begun: there is nothing to set aside, but it may wait for a commit.
                self._saver.now("skip")

    def _stopped_by(self, work: Work, stop: StopFile) -> None:
        incident = stop.incident
        self._set_aside(work, incident.kind, incident.text, "skip", rollback=stop.rollback)

    def _set_aside(
        self,
        work: Work,
        error_class: str,
        text: str,
        reason: Reason,
        *,
        rollback: bool = False,
    ) -> None:
        """Commit first: the cursor must be on disk before the daemon moves the job."""
        was_halted = isinstance(self._state, Halted)
        session, job = self._session, work.job
        fraction = job.fraction
        self._saver.now(reason)
        work.close()
        session.control.say(
            JobRefused(job.train.job_id, error_class, text, "retry goes on from there", fraction)
        )
        if rollback:
            session.control.say(WantRollback(job.train.job_id, error_class, text))
        if was_halted:
            self._state = Halted(None)
            session.control.say(WantJob())
        else:
            self._ask()

    # --- a new job -------------------------------------------------------------------------------

    def _take(self, train: Train) -> None:
        """Begin a job, or answer at once when there is nothing to train in it."""
        session = self._session
        session.heart.beat(Phase.DATA)
        if train.job_id in self._completed:
            session.control.say(JobTrained(train.job_id, session.progress.global_step))
            # Offered again although done: the daemon waits for the commit that lists it.
            if not self._saver.now("file_done"):
                self._say_saved("file_done")
            return self._ask()
        try:
            cursor, pinned = session.started(train)
            job = self._opener.open(train, cursor, pinned)
        except JobRefusal as refusal:
            session.control.say(
                JobRefused(train.job_id, refusal.error_class, refusal.message, refusal.hint)
            )
            return self._ask()
        work = self._make_work(job)
        self._state = Training(work)
        try:
            work.start()
        except StopFile as stop:
            self._stopped_by(work, stop)
