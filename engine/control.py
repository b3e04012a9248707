"""What the daemon asked for, waiting for the loop to act on it between two steps.

The pipe's reader thread puts messages in; only the loop takes them out. A closed pipe means that
the daemon is gone: the loop finishes its step, commits and exits.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import msgspec

from trainer_tui.safety import clock, messages
from trainer_tui.safety.messages import FromTrainer, ToTrainer
from trainer_tui.safety.pipe import PipeEnd

log = logging.getLogger("trainer.control")
FLUSH_S = 5.0
LOOK_AGAIN_S = 1.0


class Control:
    """Both directions of the pipe, as messages. `say` never waits."""

    def __init__(self, connection: Connection) -> None:
        self._waiting: deque[ToTrainer] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._stop_signal = False
        self._end = PipeEnd(connection, self._on_frame, self._on_close, "trainer-pipe")
        self._end.start()

    @property
    def daemon_gone(self) -> bool:
        return self._closed

    @property
    def stop_signal(self) -> bool:
        """A SIGTERM came: the same as `Stop`, whoever sent it."""
        return self._stop_signal

    @property
    def must_leave(self) -> bool:
        return self._closed or self._stop_signal

    def say(self, message: FromTrainer, *, droppable: bool = False) -> None:
        self._end.send(messages.encode(message), droppable=droppable)

    def take(self) -> ToTrainer | None:
        """The oldest message, without waiting."""
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def put_back(self, taken: Sequence[ToTrainer]) -> None:
        """To be taken again, before everything else, in the order given."""
        with self._changed:
            self._waiting.extendleft(reversed(taken))

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something is there to act on, or time is up."""
        self._sleep(lambda: bool(self._waiting) or self.must_leave, timeout_s)

    def _sleep(self, over: Callable[[], bool], timeout_s: float | None) -> bool:
        """Until `over`, or time is up; whether it is. A signal between the look at `over` and the
        sleep wakes nobody, so it is looked at again from time to time."""
        end_s = math.inf if timeout_s is None else clock.monotonic_s() + timeout_s
        with self._changed:
            while not over() and (left_s := end_s - clock.monotonic_s()) > 0:
                self._changed.wait(min(left_s, LOOK_AGAIN_S))
            return over()

    @property
    def wants_out(self) -> bool:
        """Whether the trainer has to end, in words or by the pipe; the message stays there."""
        with self._changed:
            return self.must_leave or any(
                isinstance(m, messages.Stop) and not m.after_file for m in self._waiting
            )

    def wait_out(self, timeout_s: float) -> bool:
        """Sleep, but not past a wish to end; whether there is one."""
        return self._sleep(lambda: self.wants_out, timeout_s)

    @property
    def urgent(self) -> bool:
        """Whether evaluation and other long work should end early: anything waits."""
        return bool(self._waiting) or self.must_leave

    def raise_stop(self) -> None:
        """Called from a signal handler in the main thread; the condition's lock is re-entrant."""
        self._stop_signal = True
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self._end.flush(FLUSH_S)
        self._end.close()

    def _on_frame(self, frame: bytes) -> None:
        try:
            message = messages.decode_for_trainer(frame)
        except msgspec.MsgspecError as problem:
            log.error("a message from the daemon was not understood: %s", problem)
            return
        with self._changed:
            self._waiting.append(message)
            self._changed.notify_all()

    def _on_close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
