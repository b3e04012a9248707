"""One end of the pipe between daemon and trainer, which can neither block its owner nor be lost in.

A full pipe blocks `send_bytes` and half a frame blocks `recv_bytes`, so each end has a reader
thread and a sender thread. The outgoing queue is bounded: a message marked `droppable` (metrics)
is dropped, and counted, before its sender would wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

from trainer_tui.safety.messages import MAX_FRAME_BYTES

OUTGOING_FRAMES = 1024
CLOSE_WAIT_S = 1.0


class PipeEnd:
    """Owns a connection. `on_frame(bytes)` and `on_close()` are called from the reader thread."""

    def __init__(
        self,
        connection: Connection,
        on_frame: Callable[[bytes], None],
        on_close: Callable[[], None],
        name: str,
    ) -> None:
        self._connection = connection
        self._on_frame = on_frame
        self._on_close = on_close
        self._outgoing: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._broken = False
        self.dropped = 0
        self._reader = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)
        self._sender = threading.Thread(target=self._send, name=f"{name}-sender", daemon=True)

    def start(self) -> None:
        self._reader.start()
        self._sender.start()

    def send(self, frame: bytes, *, droppable: bool = False) -> bool:
        """Queue a frame; never waits. False when it was dropped or the pipe is gone."""
        with self._changed:
            if self._closing or self._broken:
                return False
            if droppable and len(self._outgoing) >= OUTGOING_FRAMES:
                self.dropped += 1
                return False
            self._outgoing.append(frame)
            self._changed.notify_all()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued is in the pipe; False when time ran out or it broke."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outgoing or self._broken, timeout_s)
            return not self._outgoing

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Closing alone would neither wake our reader, blocked in recv(2), nor tell the other end,
        # for the blocked call keeps the socket open. ENOTSOCK: a one-way pipe, which does both.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._connection.fileno())) as end,
        ):
            end.shutdown(socket.SHUT_RDWR)
        if self._reader.is_alive() and threading.current_thread() is not self._reader:
            self._reader.join(CLOSE_WAIT_S)
        self._connection.close()

    def _read(self) -> None:
        try:
            while True:
                self._on_frame(self._connection.recv_bytes(MAX_FRAME_BYTES))
        except (EOFError, OSError):
            pass  # the other end is gone, or we closed: either way there is nothing more to read
        finally:
            with self._changed:
                self._broken = True
                self._changed.notify_all()
            self._on_close()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outgoing or self._closing or self._broken)
                if self._broken or (self._closing and not self._outgoing):
                    return
                frame = self._outgoing[0]
            try:
                self._connection.send_bytes(frame)
            except OSError:
                with self._changed:
                    self._broken = True
                    self._changed.notify_all()
                return
            with self._changed:
                self._outgoing.popleft()
                self._changed.notify_all()
