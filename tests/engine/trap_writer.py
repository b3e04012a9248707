"""The checkpoint writer with the traps of `trap.py`; they count durable operations of its life."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from trainer_tui.engine import writer
from trainer_tui.safety import durable

traps = json.loads(Path(os.environ["TRAP_FILE"]).read_text())
count = 0


def observe(operation: str, path: Path) -> None:
    global count
    count += 1
    if count == traps.get("kill_writer_at"):
        os.killpg(0, signal.SIGKILL)
    wanted = traps.get("fail_writer")
    if wanted and operation == wanted["operation"] and wanted["times"] > 0:
        wanted["times"] -= 1
        raise OSError(wanted["errno"], os.strerror(wanted["errno"]))


if __name__ == "__main__":
    with durable.observed(observe):
        sys.exit(writer.main())
