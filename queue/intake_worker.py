"""`python -m trainer_tui.queue.intake_worker --workspace DIR`: stages files for the daemon.

JSON lines on stdin and stdout, one answer for each request, in order:
`{"do": "take", "path", "priority", "again", "keep_original", "added_by", "unchanged_s"}` ->
`{"ok": true, "staged", "meta", "verdict"}` or `{"ok": false, "class", "message", "hint"}`.
`{"do": "check", "path": job folder}` makes a job's report again; the answer is alike.
`path_bytes` (base64) stands for `path` when the name is not UTF-8. Classes: busy (ask again
later), gone, duplicate, data_error, refused, config, disk (no room), io_error (it does not read or
write), memory, timeout, usage, defect.

Hostile files meet this process, not the daemon: its memory and CPU time are limited and it never
holds anything but a staging directory. It ends at end of input or after a minute without a request.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.data.validation import ValidationSet
from trainer_tui.queue import limits, report_context, trained
from trainer_tui.queue.check import TOKENIZER_NAMES, settings_in_force
from trainer_tui.queue.intake import Busy
from trainer_tui.queue.job import COMPLETED, DATA_NAME
from trainer_tui.queue.report import Context
from trainer_tui.queue.staging import Memory, Order, SameContent, check, stage
from trainer_tui.safety import clock, config, logs
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import ConfigProblem, DataProblem, Refused, TrainerTuiError
from trainer_tui.safety.workspace import Workspace, find

IDLE_EXIT_S = 60.0
TRAINED_SHARE = 20
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
log = logging.getLogger("intake")


class Request(msgspec.Struct, frozen=True):
    do: str
    path: str = ""
    path_bytes: str = ""
    priority: str = "normal"
    again: bool = False
    keep_original: bool = False
    added_by: str = ""
    unchanged_s: float = 0.0


class Contexts:
    """The report's context, built again when what it is made of has changed. What was trained
    changes with every file that is: reading it takes a twentieth of the time at most."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._made_of: tuple[Config, tuple[object, ...], str] | None = None
        self._completed: tuple[int, int, int] = (0, 0, 0)
        self._trained_again_s = 0.0
        self._context: Context | None = None
        self.memory = Memory(workspace)

    def now(self) -> Context:
        """Raises ConfigProblem."""
        found, completed = self._look(), _mark(self._workspace.queue / COMPLETED)
        start_s = clock.monotonic_s()
        if self._context is None or found != self._made_of:
            self._context = report_context.build(self._workspace, found[0])
            self._made_of = found
        elif completed != self._completed and start_s >= self._trained_again_s:
            again = trained.load(self._workspace)
            self._context = dataclasses.replace(self._context, trained=again)
        else:
            return self._context
        now_s = clock.monotonic_s()
        self._completed = completed
        self._trained_again_s = now_s + TRAINED_SHARE * (now_s - start_s)
        return self._context

    def _look(self) -> tuple[Config, tuple[object, ...], str]:
        workspace = self._workspace
        settings = settings_in_force(workspace)
        model = config.base_model_folder(settings, workspace.root)
        newest = ValidationSet.current(workspace.validation)
        marks = tuple(_mark(model / name) for name in TOKENIZER_NAMES)
        return settings, marks, newest.id if newest else ""


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_size, found.st_mtime_ns


def answer(line: bytes, workspace: Workspace, contexts: Contexts) -> dict[str, Any]:
    """Do what one line asks for; never raises."""
    try:
        request = msgspec.json.decode(line, type=Request)
        match request.do:
            case "take":
                order = _order(request)
                limits.limit_time(order.path)
                staged = stage(workspace, order, contexts.now(), contexts.memory)
            case "check":
                job = _order(request).path
                limits.limit_time(job / DATA_NAME)
                staged = check(workspace, job, contexts.now(), contexts.memory)
            case _:
                return _no("usage", f"{request.do!r} is not something to do", "take, check")
        meta = msgspec.to_builtins(staged.meta)
        return {
            "ok": True,
            "staged": str(staged.folder),
            "meta": meta,
            "verdict": staged.meta.verdict,
        }
    except Exception as problem:  # noqa: BLE001 - the process's edge: classified, or logged
        return _classified(problem)


def _classified(problem: Exception) -> dict[str, Any]:
    match problem:
        case msgspec.MsgspecError():
            return _no("usage", f"the request is malformed: {problem}", "")
        case Busy():
            return _no("busy", problem.message, problem.hint)
        case SameContent():
            return _no("duplicate", problem.message, problem.hint)
        case DataProblem():
            return _no("data_error", problem.message, problem.hint)
        case ConfigProblem():
            return _no("config", problem.message, problem.hint)
        case Refused() | TrainerTuiError():
            return _no("refused", problem.message, problem.hint)
        case MemoryError():
            return _no("memory", limits.TOO_MUCH_MEMORY, limits.ADVICE)
        case limits.TimeUp():
            return _no("timeout", limits.TOO_MUCH_TIME, limits.ADVICE)
        case FileNotFoundError():
            return _no("gone", "it is not there any more", "")
        case OSError() if problem.errno in _DISK_ERRORS:
            return _no("disk", f"the disk does not take it: {problem.strerror}", "make room")
        case OSError() if problem.errno == errno.EIO:
            hint = "look at the disk (dmesg, smartctl), or copy the file to it again"
            return _no("io_error", f"the disk does not read or write it: {problem.strerror}", hint)
        case OSError():
            return _no("refused", f"it cannot be read: {problem.strerror}", "")
        case _:
            log.exception("a request failed")
            return _no(
                "defect", f"{type(problem).__name__}: {problem}", "see state/logs/intake.log"
            )


def _no(error_class: str, message: str, hint: str) -> dict[str, Any]:
    return {"ok": False, "class": error_class, "message": message, "hint": hint}


def _order(request: Request) -> Order:
    if request.path_bytes:
        path = Path(os.fsdecode(base64.b64decode(request.path_bytes)))
    else:
        path = Path(request.path)
    if not path.is_absolute():
        raise Refused(f"{request.path!r} is not an absolute path")
    wished = (request.priority, request.again, request.keep_original, request.added_by)
    return Order(path, *wished, request.unchanged_s)


def _lines(idle_s: float) -> Iterator[bytes]:
    """Requests, until the input ends or none comes for `idle_s`."""
    buffer = b""
    while True:
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield line
        ready, _, _ = select.select([0], [], [], idle_s)
        data = os.read(0, 1 << 16) if ready else b""
        if not data:
            return
        buffer += data


def main() -> int:
    parser = argparse.ArgumentParser(prog="intake_worker")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_EXIT_S)
    asked = parser.parse_args()
    try:
        workspace = find(asked.workspace)
    except TrainerTuiError as problem:
        print(problem, file=sys.stderr)
        return 2
    limits.limit_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's; input ends with it
    logs.set_up(workspace.logs, "intake", console=False)
    contexts = Contexts(workspace)
    for line in _lines(asked.idle_s):
        reply = msgspec.json.encode(answer(line, workspace, contexts)) + b"\n"
        try:
            os.write(1, reply)
        except BrokenPipeError:
            return 0  # the daemon is gone; its successor sweeps what was staged
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
