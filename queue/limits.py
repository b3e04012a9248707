"""Limits of a process that reads files of strangers: memory, and CPU time by the file's size.

Wall-clock time is bounded by whoever started it (`daemon/intake_worker.py`).
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from types import FrameType

MEMORY_BYTES = 6 << 30
CPU_BASE_S = 300
CPU_BYTES_PER_S = 50_000  # slower than any tokenizer on any machine this runs on
NICENESS = 10
TOO_MUCH_MEMORY = "the file needs more memory than it may have"
TOO_MUCH_TIME = "the file takes far longer than its size allows"
ADVICE = "split it"


class TimeUp(Exception):
    """The file took more CPU time than its size allows."""


def limit_process() -> None:
    """For the life of this process: memory, no core files; it yields to training."""
    os.umask(0o077)
    os.nice(NICENESS)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease must not kill
    signal.signal(signal.SIGXCPU, _time_up)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))


def limit_time(path: Path) -> None:
    """CPU seconds for this file on top of what was used so far; all threads count. Beyond them
    TimeUp is raised."""
    try:
        size = path.lstat().st_size
    except OSError:
        size = 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime) + CPU_BASE_S + size // CPU_BYTES_PER_S
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (wanted, hard))


def _time_up(number: int, frame: FrameType | None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft + 60, hard))  # room to clean up and answer
    raise TimeUp
