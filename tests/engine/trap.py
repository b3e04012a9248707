"""A trainer with traps, set by `trap.json` in the workspace; otherwise the real one.

`trace`: append {"step", "job", "rows"} for every step to `trace.jsonl`.
`kill_writer_at`: SIGKILL to trainer and writer before the writer's Nth durable operation.
`fail_writer`: {"operation", "errno", "times"}: that durable operation of the writer fails.
`raise_steps`: global steps that crash. `nan_steps`: global steps whose loss is NaN.
`oom_tokens`: micro-batches over this do not fit.
"""

from __future__ import annotations

import json
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import torch

from trainer_tui.engine import entry, saver, step, work, writer_process
from trainer_tui.safety.messages import TrainerSpec

now: dict[str, Any] = {"step": 0}


def run(connection: Connection, spec_bytes: bytes) -> int:
    root = Path(msgspec.msgpack.decode(spec_bytes, type=TrainerSpec).workspace)
    file = root / "trap.json"
    traps = json.loads(file.read_text()) if file.exists() else {}
    _trap_writer(file, traps)
    _trap_steps(root, traps)
    return entry.run(connection, spec_bytes)


def _trap_writer(file: Path, traps: dict[str, Any]) -> None:
    if "kill_writer_at" in traps or "fail_writer" in traps:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        os.environ["TRAP_FILE"] = str(file)
        writer_process.WRITER_MODULE = "trap_writer"
        saver.SPACE_RETRY_S = 0.1


def _trap_steps(root: Path, traps: dict[str, Any]) -> None:
    honest_step, honest_loss = work.Work.step, step.forward_loss_sum

    def traced(self: work.Work) -> None:
        now["step"] = self._session.progress.global_step + 1
        if traps.get("trace"):
            line = {"step": now["step"], "job": self.job.train.job_id}
            line["rows"] = [
                int(self.job.tokens.rows[index])
                for pack in self.job.plan[self.job.cursor.step_index]
                for index in pack
            ]
            with (root / "trace.jsonl").open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        honest_step(self)

    def trapped(model: Any, batch: Any, penalties: Any = ()) -> torch.Tensor:
        if torch.is_grad_enabled() and batch.tokens > traps.get("oom_tokens", 1 << 60):
            raise torch.OutOfMemoryError("CUDA out of memory (a trap)")
        if now["step"] in traps.get("raise_steps", ()):
            raise ZeroDivisionError("a trap")
        loss = honest_loss(model, batch, penalties)
        if now["step"] in traps.get("nan_steps", ()):
            loss = loss * float("nan")
        return loss

    work.Work.step = traced  # type: ignore[method-assign]
    step.forward_loss_sum = trapped  # type: ignore[assignment]
