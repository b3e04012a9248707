"""Watches the trainer's heartbeat: continues one that was stopped, ends one that hangs.

Invariant: nothing is killed that moves (`safety.hang` judges), and nothing is killed before two
stack dumps, some seconds apart, lie in its incident's folder.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from trainer_tui.daemon import stacks
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.daemon.training import Training
from trainer_tui.daemon.writer_watch import WriterWatch
from trainer_tui.safety import clock, hang, heartbeat, processes
from trainer_tui.safety.hang import Hung, Judge, Moving, Stopped, Verdict
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.processes import ProcessId
from trainer_tui.safety.workspace import Workspace

BETWEEN_DUMPS_S = 5.0


class HangWatch:
    """`run` is a task of the daemon."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        training: Training,
        teller: Teller,
        meters: Meters,
    ) -> None:
        self._workspace, self._settings = workspace, settings
        self._training, self._teller, self._meters = training, teller, meters
        self._watched: Trainer | None = None
        self._judge = Judge()
        self._stopped_since_s: dict[ProcessId, float] = {}
        self._writer = WriterWatch(workspace, teller, meters)

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            await asyncio.sleep(hang.LOOK_INTERVAL_S)
            trainer = self._training.trainer
            if trainer is None:
                self._watched = None
                self._stopped_since_s.clear()
                continue
            if trainer is not self._watched:
                self._watched = trainer
                self._writer.begin()
                self._judge = Judge(self._settings.config.supervision.hang_floor_s)
            verdict = await asyncio.to_thread(self._look, trainer)
            await self._act(trainer, verdict)
            await self._wake_helpers(trainer)
            await self._writer.look(trainer)

    async def _wake_helpers(self, trainer: Trainer) -> None:
        """A stopped checkpoint writer would let training run on with nothing committed."""
        if trainer.identity is None:
            return
        stopped = await asyncio.to_thread(_stopped_children, trainer.identity)
        now_s = clock.monotonic_s()
        since_s = {process: self._stopped_since_s.get(process, now_s) for process in stopped}
        for process in [p for p, s in since_s.items() if now_s - s >= hang.STOPPED_LIMIT_S]:
            processes.send(process, signal.SIGCONT)
            text = f"process {process.pid} of the trainer was stopped (SIGSTOP) and is continued"
            self._teller.say("warning", "trainer", text)
            del since_s[process]
        self._stopped_since_s = since_s

    def _look(self, trainer: Trainer) -> Verdict:
        state = processes.state_of(trainer.identity) if trainer.identity else None
        return self._judge.look(heartbeat.read(trainer.heartbeat), state, clock.monotonic_s())

    async def _act(self, trainer: Trainer, verdict: Verdict) -> None:
        match verdict:
            case Moving():
                return
            case Stopped(continued=count):
                trainer.signal(signal.SIGCONT)
                text = f"the trainer was stopped (SIGSTOP) and is continued, time {count}"
                self._teller.say("warning", "trainer", text)
            case Hung():
                await self._end(trainer, verdict)

    async def _end(self, trainer: Trainer, hung: Hung) -> None:
        folder = self._workspace.incidents / trainer.run_id
        text = (
            f"the trainer made no progress for {hung.silent_s:.0f} s in phase {hung.phase.label}"
            f" (limit {hung.limit_s:.0f} s): it is ended"
        )
        self._teller.say("error", "trainer", text, incident=trainer.run_id)
        trainer.ended_by_us = "hang"  # said first: a signal for its stacks may end it, too
        await self._dump(trainer, folder, 1)
        await asyncio.sleep(BETWEEN_DUMPS_S)
        still = await asyncio.to_thread(self._look, trainer)
        if isinstance(still, Moving) and still.silent_s == 0:
            trainer.ended_by_us = ""
            self._teller.say("info", "trainer", "the trainer moves again: it is left alone")
            return
        await self._dump(trainer, folder, 2)
        if self._training.trainer is trainer:
            trainer.signal(signal.SIGKILL)

    async def _dump(self, trainer: Trainer, folder: Path, number: int) -> None:
        def ask() -> None:
            trainer.signal(signal.SIGUSR1)

        await stacks.keep(folder, number, trainer.pid, ask, trainer.last_words, self._meters)


def _stopped_children(trainer: ProcessId) -> list[ProcessId]:
    found = processes.children(trainer)
    return [process for process in found if processes.state_of(process) == "T"]
