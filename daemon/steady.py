"""A part of the daemon is run again when the disk, or a person's hand in the files, made it fail.

Invariant: what stays wrong is said once and tried ever less often, so that it neither fills the
history nor notifies without end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from trainer_tui.safety import clock
from trainer_tui.safety.errors import TrainerTuiError

log = logging.getLogger("daemon")
FIRST_S = 3.0  # until the first try; then twice as long each time
LONGEST_S = 300.0
AT_THE_END_S = 1.0
WELL_S = 3600.0  # a part that ran so long was well; what fails then is news


class Patience:
    """How long to wait after a failure, and whether to say it."""

    def __init__(self) -> None:
        self._wait_s, self._said = FIRST_S, ""

    def failed(self, text: str, ran_s: float) -> tuple[float, bool]:
        """The part ended with `text` after `ran_s`: (how long to wait, whether it is news)."""
        if ran_s >= WELL_S:
            self._wait_s, self._said = FIRST_S, ""
        wait_s, news = self._wait_s, text != self._said
        self._wait_s, self._said = min(2 * wait_s, LONGEST_S), text
        return wait_s, news


async def nap(ending: asyncio.Event, seconds: float) -> None:
    """Sleep, but not on when the daemon ends: the trainer has to hear of it, also from a part that
    has just failed."""
    if ending.is_set():
        await asyncio.sleep(min(seconds, AT_THE_END_S))
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ending.wait(), seconds)


async def steady(
    name: str,
    run: Callable[[], Awaitable[None]],
    say: Callable[..., Any],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    now_s: Callable[[], float] = clock.monotonic_s,
) -> None:
    """Run a part until it ends by itself; a failure that is ours comes through."""
    patience = Patience()
    while True:
        started_s = now_s()
        try:
            await run()
            return
        except (OSError, TrainerTuiError) as problem:
            wait_s, news = patience.failed(str(problem), now_s() - started_s)
            log.warning("%s begins anew in %g s", name, wait_s, exc_info=problem if news else None)
            if news:
                again = f"tried again in {wait_s:g} s, then ever less often until it works"
                say("error", "daemon", f"{name}: {problem}; {again}")
        await sleep(wait_s)
