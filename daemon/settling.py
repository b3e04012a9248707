"""Restores and the queue, on the event loop: see `after_restore`.

Invariant: what could not be done is tried again after every commit and at the next start, and said
once.
"""

from __future__ import annotations

from functools import partial

from trainer_tui.daemon import after_restore
from trainer_tui.daemon.after_restore import Asked, Settled
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.teller import Teller
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.layout import plain_words


class Settling:
    """One for the daemon; its caller sees to it that one restore goes on at a time."""

    def __init__(self, workspace: Workspace, desk: Desk, teller: Teller) -> None:
        self._workspace, self._desk, self._teller = workspace, desk, teller
        self._unfinished = False
        self._said: list[str] = []

    async def note(self, asked: Asked) -> None:
        """On disk before the restore. Raises Refused: it cannot be written."""
        with plain_words("nothing was restored"):
            await self._desk.aside(partial(after_restore.note, self._workspace, asked))

    async def settle(self) -> Settled:
        """What the restore means for the queue; a problem is a sentence in what is returned."""
        try:
            settled = await self._desk.ask(partial(after_restore.settle, self._workspace))
        except OSError as problem:
            settled = Settled(problems=[f"the queue waits: {problem}"], unfinished=True)
        self._unfinished = settled.unfinished
        for job in settled.requeued:
            text = f"#{job.meta.parent_job} {job.name} is queued once more as #{job.id}"
            self._teller.say("info", "job", text, job=job.id)
        for text in settled.withdrawn:
            self._teller.say("info", "job", text)
        for text in settled.problems:
            if text not in self._said:
                self._teller.say("warning", "job", text)
        self._said = settled.problems
        return settled

    async def try_again(self) -> None:
        """What the disk did not let us do."""
        if self._unfinished:
            await self.settle()

    async def at_start(self) -> None:
        """The daemon before this one may have died between a restore and what it meant."""
        if await self._desk.aside(partial(after_restore.is_noted, self._workspace)):
            await self.settle()

    async def nothing_is_left(self) -> None:
        """Raises Refused: files of the last restore are not back in the queue yet."""
        await self.at_start()
        if self._unfinished:
            raise Refused(
                f"the last restore is not over for the queue: {'; '.join(self._said)}",
                "make room on the disk: trainer-tui disk",
            )
