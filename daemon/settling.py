"""Restores and the queue, on the event loop: see `after_restore`.

Invariant: `state/restore.json` is the truth on what is left to do. It is looked at before a
restore, at the start and every `AGAIN_S`; a problem is said once. Its caller sees to it that no
restore goes on beside.
"""

from __future__ import annotations

from functools import partial

from trainer_tui.daemon import after_restore
from trainer_tui.daemon.after_restore import Asked, Settled
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety.errors import Refused, TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.layout import plain_words

AGAIN_S = 10.0


class Settling:
    """One for the daemon."""

    def __init__(
        self, workspace: Workspace, training: Training, desk: Desk, teller: Teller
    ) -> None:
        self._workspace, self._training = workspace, training
        self._desk, self._teller = desk, teller
        self._said: list[str] = []
        self._dealt_with: set[int] = set()

    async def note(self, asked: Asked) -> None:
        """On disk before the restore. Raises Refused: it cannot be written."""
        self._dealt_with.clear()
        with plain_words("nothing was restored"):
            await self._desk.aside(partial(after_restore.note, self._workspace, asked))

    async def is_left(self) -> bool:
        """Whether a restore was begun whose meaning for the queue is not done."""
        return await self._desk.aside(partial(after_restore.is_noted, self._workspace))

    async def settle(self) -> Settled:
        """What the restore means for the queue; a problem is a sentence in what is returned."""
        training = self._training
        # While a version is restored the trainer stands aside, and puts down what it had in hand.
        in_hand = None if training.restoring else training.in_hand
        spared = training.trained | ({in_hand} if in_hand is not None else set())
        try:
            settled = await self._desk.ask(
                partial(
                    after_restore.settle,
                    self._workspace,
                    spared=frozenset(spared),
                    dealt_with=self._dealt_with,
                )
            )
        except (OSError, TrainerTuiError) as problem:
            settled = Settled(problems=[f"the queue is not in line with the model yet: {problem}"])
        if in_hand in settled.spared:
            training.skip(in_hand)  # set aside, it can leave
        self._tell(settled)
        return settled

    def _tell(self, settled: Settled) -> None:
        for job in settled.requeued:
            text = f"#{job.meta.parent_job} {job.name} is queued once more as #{job.id}"
            self._teller.say("info", "job", text, job=job.id)
        for text in settled.withdrawn:
            self._teller.say("info", "job", text)
        for text in settled.problems:
            if text not in self._said:
                self._teller.say("warning", "job", text)
        self._said = settled.problems

    async def finish(self) -> None:
        """What a kill or the disk did not let be done."""
        if await self.is_left():
            await self.settle()

    async def nothing_is_left(self) -> None:
        """Raises Refused: files of the last restore are not back in the queue yet."""
        await self.finish()
        if await self.is_left():
            why = "; ".join(self._said) or "a file has to be set aside first"
            raise Refused(
                f"the last restore is not over for the queue: {why}",
                f"it is tried again every {AGAIN_S:.0f} s; trainer-tui status, trainer-tui disk",
            )
