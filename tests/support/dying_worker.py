"""An intake worker that dies of any file whose name begins with `deadly`; a line a death in
`deaths.txt` of the workspace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from trainer_tui.queue import intake_worker
from trainer_tui.queue.report import Context
from trainer_tui.queue.staging import Memory, Order, Staged, stage
from trainer_tui.safety.workspace import Workspace


def deadly(workspace: Workspace, order: Order, context: Context, memory: Memory) -> Staged:
    if Path(order.path).name.startswith("deadly"):
        with (workspace.root / "deaths.txt").open("a") as stream:
            stream.write(f"{order.path}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return stage(workspace, order, context, memory)


if __name__ == "__main__":
    intake_worker.stage = deadly
    raise SystemExit(intake_worker.main())
