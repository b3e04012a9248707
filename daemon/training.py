"""Drives the trainer: one mailbox, one thing at a time, everything decided by `decide`.

Invariant: at most one trainer runs, and what it is told follows from the intent and the queue,
whatever was lost or changed on the way.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from dataclasses import replace
from typing import assert_never

from trainer_tui.daemon import decide
from trainer_tui.daemon.after_end import End
from trainer_tui.daemon.decide import Present
from trainer_tui.daemon.hearing import Hearing
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.daemon.training_state import Mail
from trainer_tui.safety import clock, logs, messages

log = logging.getLogger("daemon")
ACTS_IN_A_ROW = 8
LOOK_AGAIN_S = 5.0  # idle time passes without any event


class Training(Hearing):
    """Public methods run on the event loop. `until` waits for an effect."""

    # --- the mailbox -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation."""
        await self.collect(quick=False)
        if self._undone is not None:
            await self._do(self._undone)
        while True:
            await self._act()
            for waiter in self._waiters:
                waiter.set()
            wait_s = self._look_again_in_s()
            try:
                async with asyncio.timeout(wait_s):
                    mail = await self._mail.get()
            except TimeoutError:
                continue
            await self._do(mail)

    async def _do(self, mail: Mail) -> None:
        """Nobody says it twice: when the disk fails it is kept, and done first when `run` begins
        anew. So what comes by mail may be done twice. What is gone does not come back: that is not
        tried again."""
        self._undone = None
        try:
            await mail()
        except FileNotFoundError:
            raise
        except OSError:
            self._undone = mail
            raise

    def _look_again_in_s(self) -> float:
        """Back-off and idle time pass without any event."""
        match self.facts().trainer:
            case decide.Absent(back_off_left_s=left_s) if left_s > 0:
                return left_s + 0.01
            case Present(told_nothing_waits=True, idle_s=idle_s):
                limit_s = self._means.settings.config.supervision.idle_exit_s
                return min(LOOK_AGAIN_S, max(0.0, limit_s - idle_s) + 0.01)
            case _:
                return LOOK_AGAIN_S

    async def _act(self) -> None:
        """Do what `decide` says until it says nothing."""
        for _ in range(ACTS_IN_A_ROW):
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
        message: messages.Pause
        | messages.Resume
        | messages.Stop
        | messages.LetGo
        | messages.TakeUp
        | messages.NothingWaits,
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
            case messages.LetGo():
                self.present = replace(self.present, asked="let_go", aside=False)
            case messages.TakeUp():
                self.present = replace(self.present, asked="take_up", aside=False)
            case messages.NothingWaits():
                self._idle_since_s = clock.monotonic_s()
                self.present = replace(self.present, told_nothing_waits=True)
            case _ as never:
                assert_never(never)

    async def _spawn(self) -> None:
        config = await self._means.settings.freeze()
        page = self._means.workspace.state / "trainer.heartbeat"
        page.unlink(missing_ok=True)
        spec = messages.TrainerSpec(
            run_id=f"{clock.now_iso()[:19].replace(':', '')}-{secrets.token_hex(4)}",
            workspace=str(self._means.workspace.root),
            config=config.model_dump(mode="json"),
            heartbeat=str(page),
        )
        self.present, self.in_hand = Present(ready=False), None
        self._failed, self._said_stopping, self._resuming = None, False, False
        self.saves_asked = self.saves_answered = 0
        self._trained.clear()
        self.figures.epochs = config.epochs
        output = self._means.workspace.logs / "trainer.out"
        logs.make_room(output)
        tag = f"{self._means.run_tag}:{spec.run_id}"
        self.trainer = Trainer(self._means.entry, spec, tag, output, self._on_message, self._on_end)
        log.info("trainer %d started", self.trainer.pid)

    async def _offer(self) -> None:
        job = next(
            (job for job in self._means.desk.processing if job.id not in self._trained), None
        )
        if job is not None:
            await self._means.desk.begin_again(job.id)
        else:
            job = await self._means.desk.claim_next()
        if job is None:
            return
        self.in_hand = job.id
        self.present = replace(self.present, hungry=False, told_nothing_waits=False)
        self.send(messages.Train(job.id, job.name, str(job.folder), job.file_sha256, job.others))

    # --- what comes from the trainer -------------------------------------------------------------

    def _on_message(self, trainer: Trainer, message: messages.FromTrainer) -> None:
        async def handle() -> None:
            if trainer is self.trainer:
                await self._handle(message)

        self._mail.put_nowait(handle)

    def _on_end(self, trainer: Trainer, wait_status: int) -> None:
        self._mail.put_nowait(lambda: self._ended(trainer, wait_status))

    async def _ended(self, trainer: Trainer, wait_status: int) -> None:
        if trainer is not self.trainer:
            return
        end = await self._note_end(trainer, wait_status)
        if end.meant:
            log.info("trainer %d ended as asked", trainer.pid)
        else:
            verdict = await self.aftermath.crashed(trainer, end, self._failed)
            if verdict.then == "degrade":
                why = f"{verdict.finding.text}; training does not restart by itself any more"
                await self.set_intent("degraded", "daemon", why)
                self._means.teller.say("error", "training", why, hint=verdict.finding.suggestion)
        self.trainer, self.present, self.in_hand = None, Present(ready=False), None
        self._resuming = False
        self._trained.clear()
        self.figures.end_job()
        self.figures.fall_back()

    async def _note_end(self, trainer: Trainer, wait_status: int) -> End:
        """What its end means for its jobs; done twice is done. Raises OSError."""
        desk = self._means.desk
        in_hand = next((job for job in desk.processing if job.id == self.in_hand), None)
        end = End(
            wait_status,
            asked_to_stop=self.present.asked in ("stop", "stop_after_file", "pause_release"),
            said_stopping=self._said_stopping,
            ready=self.present.ready,
            in_hand=in_hand.id if in_hand else None,
            attempts=in_hand.attempts if in_hand else 0,
            killed=trainer.ended_by_us == "stop",
        )
        await self.aftermath.end_leftovers(trainer)
        await self.collect(quick=False)
        if in_hand is not None and in_hand.id not in {job.id for job in desk.processing}:
            end = replace(end, in_hand=None)  # the last commit completed it
        at_rest = self.present.aside or self.present.asked == "take_up"  # no step was being run
        if end.in_hand is not None and (end.meant or at_rest):
            await desk.end_attempt(end.in_hand, "interrupted")  # nothing of it is its file's fault
            end = replace(end, in_hand=None)
        return end
