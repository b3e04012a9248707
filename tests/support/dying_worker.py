"""An intake worker that dies of any file whose name begins with `deadly`, half a copy made, and
sleeps over any that begins with `sleepy`; a line each in `deaths.txt` of the workspace."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from trainer_tui.queue import intake_worker, staging
from trainer_tui.queue.report import Context
from trainer_tui.queue.staging import Memory, Order, Staged, stage
from trainer_tui.safety.workspace import Workspace


def deadly(workspace: Workspace, order: Order, context: Context, memory: Memory) -> Staged:
    name = Path(order.path).name
    if name.startswith(("deadly", "sleepy")):
        (staging._new_folder(workspace) / "data.jsonl").write_bytes(b"half")
        with (workspace.root / "deaths.txt").open("a") as stream:
            stream.write(f"{order.path}\n")
        if name.startswith("sleepy"):
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL)
    return stage(workspace, order, context, memory)


if __name__ == "__main__":
    intake_worker.stage = deadly
    raise SystemExit(intake_worker.main())
