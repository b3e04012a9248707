"""The checkpoint writer process: takes requests by a pipe, writes, hashes, commits, answers.

It never imports torch and never touches CUDA. It inherits the `.writer` lock, so a trainer that
starts after a crash waits until this process is through with the commit in hand; when the
trainer is gone it finishes that commit and ends.

    python -m trainer_tui.engine.writer CONNECTION_FD
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from trainer_tui.engine.checkpoint_files import Place, WriteRequest, Written, write_checkpoint
from trainer_tui.safety import clock

REPORT_EVERY_S = 0.2
MAX_REQUEST_BYTES = 256 << 20  # tokenizer files travel in the request


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    current_model: str
    ledger: str


class Write(msgspec.Struct, frozen=True, tag="write"):
    request: WriteRequest


class Wrote(msgspec.Struct, frozen=True, tag="progress"):
    """A sign of life: bytes of the commit in hand that are written."""

    bytes_written: int


class WriteFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Nothing was committed."""

    error_number: int
    text: str


ToWriter = Setup | Write
FromWriter = Wrote | Written | WriteFailed

encode = msgspec.msgpack.Encoder().encode
_to_writer: msgspec.msgpack.Decoder[ToWriter] = msgspec.msgpack.Decoder(ToWriter)
_from_writer: msgspec.msgpack.Decoder[FromWriter] = msgspec.msgpack.Decoder(FromWriter)
decode_for_writer = _to_writer.decode
decode_from_writer = _from_writer.decode


class _Reporter:
    """Sends progress at most every `REPORT_EVERY_S`; a gone trainer does not stop a commit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_s = 0.0

    def __call__(self, written: int) -> None:
        if clock.monotonic_s() - self._last_s >= REPORT_EVERY_S:
            self._last_s = clock.monotonic_s()
            self.send(Wrote(written))

    def send(self, message: FromWriter) -> None:
        # Nobody may be listening any more; what matters is on disk.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send_bytes(encode(message))


def serve(connection: Connection) -> None:
    """Answer requests until the other end closes."""
    place: Place | None = None
    reporter = _Reporter(connection)
    while True:
        try:
            message = decode_for_writer(connection.recv_bytes(MAX_REQUEST_BYTES))
        except (EOFError, ConnectionResetError):
            return
        match message:
            case Setup():
                place = Place(Path(message.current_model), Path(message.ledger))
            case Write():
                assert place is not None, "a request before the setup"
                reporter.send(attempt(place, message.request, reporter))


def attempt(place: Place, request: WriteRequest, progress: _Reporter) -> Written | WriteFailed:
    try:
        return write_checkpoint(place, request, progress)
    except OSError as problem:
        return WriteFailed(problem.errno or errno.EIO, str(problem))


def main() -> int:
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # a commit in hand is finished whatever ends us
    os.umask(0o077)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked for when nothing moves
    serve(Connection(int(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
