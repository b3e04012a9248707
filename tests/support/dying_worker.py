"""An intake worker that dies of any file whose name begins with `deadly`, half a copy made, and
sleeps over any that begins with `sleepy`; a line each in `deaths.txt` of the workspace. A job whose
name begins with `sick` lies on a bad sector when its report is made again."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from trainer_tui.queue import intake_worker, staging
from trainer_tui.queue.report import Context
from trainer_tui.queue.staging import Memory, Order, Staged, check, stage
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


def sickly(workspace: Workspace, job: Path, context: Context, memory: Memory) -> Staged:
    if "-sick" in job.name:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return check(workspace, job, context, memory)


if __name__ == "__main__":
    intake_worker.stage, intake_worker.check = deadly, sickly
    raise SystemExit(intake_worker.main())
