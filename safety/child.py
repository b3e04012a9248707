"""The first function of a spawned child: find the room's entry point by name and run it.

By name, so that the daemon can start the engine without importing it.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NoReturn

TRAINER_ENTRY = "trainer_tui.engine.entry"


def spawn(entry: str, connection: Connection, spec: bytes, output: Path, name: str) -> SpawnProcess:
    """Start `entry.run(connection, spec)` in a fresh interpreter and its own session.

    Must be called from the main thread: PR_SET_PDEATHSIG, where a child uses it, fires when the
    spawning thread ends. The child's stdout and stderr go to `output` (appended).
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_first, args=(entry, connection, spec, str(output)), name=name)
    process.start()
    return process


def _first(entry: str, connection: Connection, spec: bytes, output: str) -> None:
    os.setsid()
    os.umask(0o077)
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(fd, stream)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    run: Callable[[Connection, bytes], int] = importlib.import_module(entry).run
    _leave(run(connection, spec))


def _leave(exit_code: int) -> NoReturn:
    """End at once. The entry has closed what it opened; taking torch's modules apart one by one
    would only hold up whoever waits for this process, on a busy machine for seconds."""
    atexit._run_exitfuncs()  # logs are flushed, and helpers of libraries are told
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)
