"""The trainer's end of the checkpoint writer: start it, hand it requests, hear from it.

Invariant: at most one request is under way, and the images it reads are not touched until it
was answered. A writer that died is replaced once per request and the request made again: the
images still hold the state.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from trainer_tui.engine import writer
from trainer_tui.engine.checkpoint_files import Place, WriteRequest, Written
from trainer_tui.engine.writer import WriteFailed
from trainer_tui.safety import durable

log = logging.getLogger("trainer.writer")
CLOSE_LIMIT_S = 100.0  # the hang watch gives the trainer 120
WRITER_MODULE = "trainer_tui.engine.writer"


class WriterProcess:
    """`inherited_fds`: the lock and the images. `bytes_written` grows while a commit goes on."""

    def __init__(self, place: Place, inherited_fds: Sequence[int]) -> None:
        self._place = place
        self._fds = tuple(inherited_fds)
        self._request: WriteRequest | None = None
        self._attempts = 0
        self.bytes_written = 0
        self._process, self._connection = self._start()

    @property
    def busy(self) -> bool:
        return self._request is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, request: WriteRequest) -> None:
        assert self._request is None, "one request at a time"
        self._request, self._attempts = request, 0
        self._send(request)

    def poll(self, timeout_s: float = 0.0) -> Written | WriteFailed | None:
        """The answer once it is there; waits `timeout_s` at most."""
        if self._request is None:
            return None
        try:
            while self._connection.poll(timeout_s):
                answer = writer.decode_from_writer(self._connection.recv_bytes())
                if isinstance(answer, writer.Wrote):
                    self.bytes_written = answer.bytes_written
                    timeout_s = 0.0
                    continue
                self._request = None
                return answer
        except (EOFError, OSError):
            return self._replace()
        return None

    def close(self) -> None:
        """The writer ends by itself once its pipe is closed; wait for it, but not for ever: one
        whose disk is gone does not even end when it is killed."""
        self._connection.close()
        try:
            self._process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            log.error("the checkpoint writer %d does not end: it is killed", self.pid)
            self._process.kill()

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", WRITER_MODULE, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(), *self._fds))
        theirs.close()
        setup = writer.Setup(str(self._place.current_model), str(self._place.ledger))
        ours.send_bytes(writer.encode(setup))
        return process, ours

    def _send(self, request: WriteRequest) -> None:
        self._attempts += 1
        self.bytes_written = 0
        try:
            self._connection.send_bytes(writer.encode(writer.Write(request)))
        except OSError:
            log.warning("the checkpoint writer is gone")  # `poll` finds out and replaces it

    def _replace(self) -> WriteFailed | None:
        """The writer died. It held our lock too, so nobody else can have committed meanwhile."""
        request = self._request
        assert request is not None
        code = self._process.wait()
        self._connection.close()
        log.error("the checkpoint writer ended with %s in the middle of a commit", code)
        durable.sweep_staging(self._place.current_model)
        self._process, self._connection = self._start()
        if self._attempts >= 2:
            self._request = None
            return WriteFailed(errno.EIO, f"the checkpoint writer died twice (exit {code})")
        self._send(request)
        return None
