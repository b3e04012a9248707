"""Watches the checkpoint writer while training goes on beside it: ends one in which nothing moves.

Invariant: training does not run on uncommitted for longer than the writer's limit; a stack dump
and an incident are kept first. The trainer notices the end and makes the request again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial

from trainer_tui.daemon import stacks
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.safety import clock, heartbeat, incidents, processes
from trainer_tui.safety.crash import CrashClass
from trainer_tui.safety.hang import WriterHung, WriterJudge
from trainer_tui.safety.heartbeat import Phase
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.processes import ProcessId
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
GONE_LIMIT_S = 60.0  # after SIGKILL: one that waits for a dead disk cannot even end


class WriterWatch:
    """`look` is called about every second by the hang watch."""

    def __init__(self, workspace: Workspace, teller: Teller, meters: Meters) -> None:
        self._workspace, self._teller, self._meters = workspace, teller, meters
        self.begin()

    def begin(self) -> None:
        """Another trainer is watched from now on."""
        self._judge = WriterJudge()
        self._ended: tuple[ProcessId, float] | None = None
        self._count = 0

    async def look(self, trainer: Trainer) -> None:
        if self._ended is not None:
            self._after_the_end(trainer, *self._ended)
            return
        hung = await asyncio.to_thread(self._judge_now, trainer)
        if hung is not None:
            await self._end(trainer, hung)

    def _judge_now(self, trainer: Trainer) -> WriterHung | None:
        beat = heartbeat.read(trainer.heartbeat)
        writer = processes.identify(beat.writer_pid) if beat and beat.writer_pid else None
        counted = processes.bytes_written(writer) if writer else 0
        seen = (beat.bytes_written if beat else 0, counted)
        step = beat.global_step if beat and beat.phase is not Phase.PERSIST else None
        return self._judge.look(writer.pid if writer else 0, seen, step, clock.monotonic_s())

    async def _end(self, trainer: Trainer, hung: WriterHung) -> None:
        writer = processes.identify(hung.pid)
        if writer is None or trainer.identity is None:
            return
        if writer not in await asyncio.to_thread(processes.children, trainer.identity):
            return
        self._count += 1
        name = f"{trainer.run_id}-writer-{self._count}"
        text = f"the checkpoint writer wrote nothing for {hung.silent_s:.0f} s: it is ended"
        hint = "the disk may hang (dmesg); the same state is saved again by a new writer"
        self._teller.say("error", "checkpoint", text, hint=hint, incident=name)
        folder = self._workspace.incidents / name
        ask = partial(processes.send, writer, signal.SIGUSR1)
        await stacks.keep(folder, 1, writer.pid, ask, trainer.last_words, self._meters)
        document = {
            "at": clock.now_iso(),
            "class": str(CrashClass.HANG),
            "text": text,
            "suggestion": hint,
            "done": "the writer was ended; the trainer saves the same state again",
            "phase": "persist",
            "silent_s": hung.silent_s,
        }
        await asyncio.to_thread(incidents.keep, folder, document)
        processes.send(writer, signal.SIGKILL)
        self._ended = writer, clock.monotonic_s()

    def _after_the_end(self, trainer: Trainer, writer: ProcessId, since_s: float) -> None:
        """One that will not end keeps the commit from ever being made: the trainer goes, too."""
        if not processes.alive(writer):
            self._ended = None
        elif clock.monotonic_s() - since_s > GONE_LIMIT_S:
            self._ended = None
            trainer.ended_by_us = "hang"
            trainer.signal(signal.SIGKILL)
