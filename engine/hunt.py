"""Finds the rows that end a process: the bisection of `poison.py`, each trial in another process.

Started by the next trainer (`deaths.py`) before it loads its model, and gone when it has answered.
It imports no torch: trials are forked from a server that has, so that a death costs loading the
model and no more.

Invariant: a trial that ends without an answer, or not in time, has failed; one that cannot even be
set up ends the hunt with nothing found.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import msgspec

from trainer_tui.engine.deaths import Answer, Request, forbid_core_dumps
from trainer_tui.engine.poison import NotTheRows, find_guilty, too_many

log = logging.getLogger("trainer.hunt")
TRIAL_ENTRY = "trainer_tui.engine.trial"
METHOD = "forkserver"
PRELOADED = ["trainer_tui.engine.trial"]
OPENING_LIMIT_S = 900.0  # loading the model, and compiling it where that is done
TRIAL_LIMIT_S = 600.0  # a row may also make it hang


class Opened(msgspec.Struct, frozen=True):
    """A trial's first word. `documents` of the step, by index, with the line each comes from;
    `reference`: documents of another step; `rows`: how many rows the file trains."""

    documents: list[int] = []
    lines: list[int] = []
    reference: list[int] = []
    rows: int = 0
    problem: str = ""


class Unclear(Exception):
    """The hunt cannot go on; why."""


def run(connection: Connection, spec: bytes) -> int:
    """The hunting process, from birth to exit code."""
    forbid_core_dumps()
    request = msgspec.json.decode(spec, type=Request)
    trials = Trials(connection, spec)
    try:
        opened = trials.open()
        guilty = find_guilty(opened.documents, trials.fails, opened.reference)
        lines = sorted({opened.lines[opened.documents.index(at)] for at in guilty})
        if too_many(len(lines), opened.rows):
            answer = Answer(True, text="so many rows end the process that it is the file")
        else:
            answer = Answer(True, lines, "" if lines else "the step does not fail again")
    except NotTheRows:
        answer = Answer(True, text="the step fails whatever rows are in it")
    except Unclear as problem:
        answer = Answer(True, text=str(problem))
    finally:
        trials.close()
    log.info("job %d: %s", request.place.job_id, answer)
    with contextlib.suppress(OSError):
        connection.send_bytes(msgspec.json.encode(answer))
    return 0


class Trials:
    """Asks trial processes one question after the other; a dead one is replaced."""

    def __init__(self, parent: Connection, spec: bytes) -> None:
        self._parent, self._spec = parent, spec
        self._context: Any = multiprocessing.get_context(METHOD)  # its kind is not typed
        self._context.set_forkserver_preload(PRELOADED)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._opened: Opened | None = None

    def open(self) -> Opened:
        """Start a trial process and hear what the step consists of. Raises Unclear."""
        ours, theirs = multiprocessing.Pipe()
        arguments = (TRIAL_ENTRY, theirs, self._spec)
        self._process = self._context.Process(target=_first, args=arguments, name="trial")
        self._process.start()
        theirs.close()
        self._pipe = ours
        first = self._hear(OPENING_LIMIT_S)
        if first is None:
            raise Unclear("a process ended before it came to the rows")
        opened = msgspec.json.decode(first, type=Opened)
        if opened.problem:
            raise Unclear(opened.problem)
        if self._opened is not None and opened != self._opened:
            raise Unclear("the step changed while it was tried")
        self._opened = opened
        return opened

    def fails(self, documents: Sequence[int]) -> bool:
        """Whether a step of these documents ends its process, or raises, or gives a NaN."""
        if self._pipe is None:
            self.open()
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(msgspec.json.encode(list(documents)))
            heard = self._hear(TRIAL_LIMIT_S)
        except OSError:
            heard = None
        self._parent.send_bytes(msgspec.json.encode(Answer(False)))
        failed = heard != b"fine"
        log.info("%d documents: %s", len(documents), "failed" if failed else "fine")
        if failed:
            self.close()  # whatever it left in the process is not to fail the next
        return failed

    def _hear(self, limit_s: float) -> bytes | None:
        """One answer; None when the process ended or time is up. Raises Unclear."""
        assert self._pipe is not None
        ready = wait([self._pipe, self._parent], limit_s)
        if self._parent in ready:
            raise Unclear("the trainer is gone")
        if not ready:
            return None
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """End the trial process, if there is one."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()


def _first(entry: str, connection: Connection, spec: bytes) -> None:
    forbid_core_dumps()
    importlib.import_module(entry).run(connection, spec)
