"""First on the path of a trainer: its checkpoint writer stands still in fsync while the file named
in `HANG_WRITER` is there. A process that hangs, but is not stopped.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if "trainer_tui.engine.writer" in sys.orig_argv:
    _real = os.fsync

    def _fsync(fd: int) -> None:
        while Path(os.environ["HANG_WRITER"]).exists():
            time.sleep(0.05)
        _real(fd)

    os.fsync = _fsync
