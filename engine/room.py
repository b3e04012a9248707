"""A step that ran out of memory gets room: by waiting for another process, or by getting smaller.

Invariant: the update stays the same. The caller draws the step's random numbers again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer_tui.engine import memory
from trainer_tui.engine.session import Session
from trainer_tui.safety.heartbeat import Phase


class Room:
    """`on_smaller`: what fits is worth remembering."""

    def __init__(self, session: Session, on_smaller: Callable[[], None]) -> None:
        self._session = session
        self._on_smaller = on_smaller

    def make(self, problem: torch.OutOfMemoryError) -> None:
        """Come back when the step is worth another try. Raises `problem`: it is as small as can
        be."""
        if not self._waited_for_others():
            self._shrink(problem)

    def _waited_for_others(self) -> bool:
        """Whether another process had the memory and has let go of it."""
        session, device = self._session, self._session.device
        needed = memory.needed_bytes(device)
        card = memory.look(device)
        if card is None or not memory.others_are_to_blame(card, session.stepper.fitted, needed):
            return False
        if device.type == "cuda":
            torch.cuda.empty_cache()
        minutes = memory.WAIT_LIMIT_S / 60
        session.tell(
            "warning",
            "waiting",
            f"another process holds {card.others_bytes / 1e9:.1f} GB of the card: training waits "
            f"up to {minutes:.0f} min for {needed / 1e9:.1f} GB",
            **card.figures,
        )
        session.heart.beat(Phase.PAUSED)

        def sleep(seconds: float) -> bool:
            session.heart.beat(Phase.PAUSED)
            return session.control.wait_out(seconds)

        there = memory.wait_for_room(device, needed, sleep, memory.WAIT_LIMIT_S)
        session.heart.beat(Phase.MICRO_STEP)
        session.meter.interrupted()
        session.tell("info", "waiting", "there is room again" if there else "there is no room yet")
        return there

    def _shrink(self, problem: torch.OutOfMemoryError) -> None:
        """Half the micro-batch, twice as many of them."""
        session = self._session
        if not session.stepper.halve(1):
            raise problem
        card = memory.look(session.device)
        session.tell(
            "warning",
            "memory",
            "out of memory: micro-batches are now "
            f"{session.stepper.micro_batch_tokens} tokens, the updates stay the same",
            micro_batch_tokens=session.stepper.micro_batch_tokens,
            problem=str(problem).splitlines()[0],
            **(card.figures if card else {}),
        )
        self._on_smaller()
