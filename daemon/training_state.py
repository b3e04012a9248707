"""What is known of training, and the ways to ask and to wait: the base of `Training`.

Invariant: the intent is durable before it is in force here. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from trainer_tui.daemon import intent
from trainer_tui.daemon.aftermath import Aftermath
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.completed import Committed, Ledger
from trainer_tui.daemon.decide import Absent, Facts, Present
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.figures import Figures
from trainer_tui.daemon.history import History
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.queue.line import Work
from trainer_tui.safety import clock, heartbeat, messages
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.workspace import Workspace

Mail = Callable[[], Coroutine[Any, Any, None]]
WISHES: dict[intent.Wish, str] = {
    "run": "training is to go on",
    "pause": "training is to pause",
    "stop_after_file": "training is to stop after this file",
    "stopped": "training is to stop",
    "degraded": "training is given up",
}


@dataclass(frozen=True, slots=True)
class Means:
    """What training works with. `entry`: the trainer's module; `run_tag` marks its processes."""

    workspace: Workspace
    settings: Settings
    desk: Desk
    bus: Bus
    history: History
    teller: Teller
    entry: str
    run_tag: str
    meters: Meters


class TrainingState:
    """`present`: the trainer as `decide` sees it. `in_hand`: the job it was given. `blocker`: why
    none can start; `holds`: why it has to pause by itself, by who says so."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.intent = intent.load(means.workspace.intent_file)
        self.figures = Figures()
        self.trainer: Trainer | None = None
        self.present = Present(ready=False)
        self.in_hand: int | None = None
        self.ending = False
        self.restoring = 0
        self.exclusive = 0
        self.blocker = ""
        self.holds: dict[str, str] = {}
        self.aftermath = Aftermath(
            means.workspace, means.settings, means.desk, means.teller, means.meters
        )
        self.after_commit: list[Callable[[Committed, list[int]], None]] = []
        self.rollback_wished: list[Callable[[messages.WantRollback], None]] = []
        self._ledger = Ledger(means.workspace)
        self._failed: messages.Failed | None = None
        self._said_stopping = False
        self._resuming = False
        self.saves_asked = self.saves_answered = 0  # of this trainer: it answers all, in order
        self.trainer_waits = ""  # what for, in its own words
        self._trained: set[int] = set()
        self._started_fractions: dict[int, float] = {}
        self._idle_since_s = 0.0
        self._mail: asyncio.Queue[Mail] = asyncio.Queue()
        self._undone: Mail | None = None  # the disk did not let it be done
        self._waiters: set[asyncio.Event] = set()

    # --- what others ask -------------------------------------------------------------------------

    def facts(self) -> Facts:
        now_s = clock.monotonic_s()
        trainer: Absent | Present
        if self.trainer is None:
            trainer = Absent(max(0.0, self.aftermath.back_off_until_s - now_s))
        else:
            idle_s = now_s - self._idle_since_s if self.present.told_nothing_waits else 0.0
            trainer = replace(self.present, idle_s=idle_s)
        started = any(job.id not in self._trained for job in self._means.desk.processing)
        return Facts(
            wish=self.intent.training,
            trainer=trainer,
            release=self.intent.release,
            ending=self.ending,
            restoring=self.restoring > 0,
            exclusive=self.exclusive > 0,
            blocker=self.blocker,
            hold="; ".join(self.holds.values()),
            work=started or self._means.desk.claimable,
            started_work=started or bool(self._means.desk.processing and self.trainer is None),
            in_hand=self.in_hand is not None,
            renew=self._means.settings.needs_new_trainer(),
            idle_exit_s=self._means.settings.config.supervision.idle_exit_s,
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
        await asyncio.to_thread(intent.save, self._means.workspace.intent_file, new)
        before, self.intent = self.intent, new
        if wish != before.training and wish != "degraded":  # giving up is told with its reason
            self._tell_wish(wish, by)
        if wish in ("run", "stopped"):
            self.aftermath.begin_anew()
        self.poke()

    def _tell_wish(self, wish: intent.Wish, by: str) -> None:
        words = WISHES[wish] + (f" (asked by {by})" if by else "")
        step = self.figures.global_step
        self._means.teller.say("info", "training", words, intent=wish, step=step)

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
    async def for_restoring(
        self, timeout_s: float, *, in_place: bool
    ) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
        """Ask the trainer for the model on disk; afterwards it takes it up again, from whatever is
        the newest state then. What is yielded waits for it: nothing is unsaved afterwards, and no
        trainer holds the model.

        Args:
            in_place: the trainer itself may go on from what is restored; else it ends.

        Raises:
            Refused: by the wait, when the trainer did not let go in time.
        """
        self.restoring += 1
        self.exclusive += not in_place
        self.poke()

        async def free() -> None:
            if not await self.until(lambda: self.trainer is None or self.present.aside, timeout_s):
                text = f"the trainer did not let go of the model within {timeout_s:.0f} s"
                raise Refused(text, "trainer-tui status")

        try:
            yield free
        finally:
            self.restoring -= 1
            self.exclusive -= not in_place
            self.poke()

    def send(self, message: messages.ToTrainer) -> bool:
        return self.trainer is not None and self.trainer.send(message)

    def save(self, *, evaluate_whole: bool = False) -> Callable[[], bool]:
        """Ask for a commit of all that is done; what is returned says whether that was answered.
        A step that is not saved then was skipped, or is one that an earlier trainer lost."""
        trainer = self.trainer
        self.send(messages.SaveNow(evaluate_whole))
        self.saves_asked += 1
        number = self.saves_asked
        return lambda: self.trainer is trainer and self.saves_answered >= number

    def skip(self, job_id: int) -> None:
        """Ask for it; `_refused` is the effect."""
        self.send(messages.Skip(job_id))

    def begun_again(self) -> Work:
        """The work of what is in `processing/` and neither in hand nor trained: after a restart."""
        rest = [
            job.tokens
            for job in self._means.desk.processing
            if job.id != self.figures.job_id and job.id not in self._trained
        ]
        return Work(sum(rest), rest.count(0))

    @property
    def trained(self) -> frozenset[int]:
        """Jobs that wait for the checkpoint that lists them."""
        return frozenset(self._trained)

    def fraction_of(self, job_id: int) -> float | None:
        """Of a job in `processing/` that is not in hand: trained and not committed yet, or
        started; None when that is not known."""
        return 1.0 if job_id in self._trained else self._started_fractions.get(job_id)

    def settings_changed(self) -> None:
        """Tell the trainer what is live; the rest waits for the next one."""
        changes = self._means.settings.live_changes()
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
    def stands_aside(self) -> bool:
        """A version is being restored, or the trainer has not said yet how it goes on."""
        return self.restoring > 0 or self.present.asked in ("let_go", "take_up")

    @property
    def resuming(self) -> bool:
        """A `Resume` was sent and not answered yet."""
        return self._resuming
