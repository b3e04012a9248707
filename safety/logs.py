"""Logs: one readable stream for people and one of JSON lines for programs, rotated by size."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from pathlib import Path

from trainer_tui.safety import clock
from trainer_tui.safety.text import printable

FILE_BYTES = 8 << 20
FILES_KEPT = 5


class _Readable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        line = f"{clock.now_iso()} {record.levelname.lower():7} {record.name}: {text}"
        if not record.exc_info:
            return line
        stack = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *map(printable, stack)])


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "at": clock.now_iso(),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


def set_up(folder: Path, name: str, *, console: bool) -> logging.Logger:
    """Log to `folder/name.log` and `folder/name.jsonl`; to stderr too when `console`. Where stderr
    is `folder/name.out`, which nobody rotates while it is open, only errors go there.

    A full disk or a closed terminal costs log lines, never the process.
    """
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False
    for suffix, formatter in ((".log", _Readable()), (".jsonl", _JsonLine())):
        handler = logging.handlers.RotatingFileHandler(
            folder / f"{name}{suffix}", maxBytes=FILE_BYTES, backupCount=FILES_KEPT, delay=True
        )
        handler.setFormatter(formatter)
        root.addHandler(handler)
    if console:
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(_Readable())
        if _is_stderr(folder / f"{name}.out"):
            shown.setLevel(logging.ERROR)
        root.addHandler(shown)
    return logging.getLogger(name)


def make_room(output: Path) -> None:
    """Before a process's output is opened for appending: one that has grown large is set aside,
    in place of the one before."""
    if output.exists() and output.stat().st_size > FILE_BYTES:
        output.replace(output.with_name(f"{output.name}.1"))


def _is_stderr(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(2))
    except OSError:
        return False
