"""The last rung of a ladder: the trainer set a file aside and asks for the version before it.

Invariant: the same path as a person's rollback, one at a time; when there is nothing to go back
to, that is said and training goes on with the state there is.
"""

from __future__ import annotations

import asyncio

from trainer_tui.daemon.keeper import Keeper
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.messages import WantRollback


class RollbackWish:
    """Runs on the event loop."""

    def __init__(self, training: Training, keeper: Keeper, teller: Teller) -> None:
        self._keeper, self._teller = keeper, teller
        self._under_way: asyncio.Task[None] | None = None
        training.rollback_wished.append(self._wished)

    def _wished(self, wish: WantRollback) -> None:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.get_running_loop().create_task(self._grant(wish))

    async def _grant(self, wish: WantRollback) -> None:
        try:
            restored = (await self._keeper.rollback()).restored
        except (TrainerTuiError, OSError) as problem:
            text = f"not rolled back after {wish.reason}: {problem}"
            self._teller.say("error", "version", text, job=wish.job_id)
            return
        text = f"rolled back to version {restored['number']}: {wish.text}"
        self._teller.say("warning", "version", text, job=wish.job_id, reason=wish.reason)
