"""A trainer with traps, set by `trap.json` in the workspace; otherwise the real one.

`trace`: append {"step", "job", "rows", "graphs"} for every step to `trace.jsonl`; `graphs` counts
what torch has compiled so far.
`kill_writer_at`: SIGKILL to trainer and writer before the writer's Nth durable operation.
`fail_writer`: {"operation", "errno", "times"}: that durable operation of the writer fails.
`raise_steps`: global steps that crash. `nan_steps`: global steps whose loss is NaN.
`poison_token`: a micro-batch that holds this token crashes; with `poison_nan` its loss is NaN.
`kill_token`: a micro-batch that holds this token ends the process by the signal `kill_by` (0: it
hangs, and the file `hangs` says so); trials in other processes have the same trap (`quick_hunt`:
without starting an interpreter for them). `kill_always`: every micro-batch does, from step 3 on.
`card`: there is a card, and while `others.txt` is there another process holds nearly all of it and
every step runs out of memory; `card` is how long the trainer waits, in seconds.
`spike_from`: from this global step on the loss is forty times what it is.
`oom_tokens`: micro-batches over this do not fit.

`halt.json`: see `engine_driver.Halt`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from torch._dynamo.utils import counters

from trainer_tui.engine import deaths, entry, memory, saver, step, work, writer_process
from trainer_tui.engine.control import Control
from trainer_tui.safety import child
from trainer_tui.safety.messages import FromTrainer, TrainerSpec

now: dict[str, Any] = {"step": 0}


def run(connection: Connection, spec_bytes: bytes) -> int:
    root = Path(msgspec.msgpack.decode(spec_bytes, type=TrainerSpec).workspace)
    file = root / "trap.json"
    traps = json.loads(file.read_text()) if file.exists() else {}
    if (halt := root / "halt.json").exists():
        _halt(**json.loads(halt.read_text()))
    _trap_writer(file, traps)
    trap_steps(root, traps)
    if "kill_token" in traps:
        _trap_hunt(bool(traps.get("quick_hunt")))
    if "card" in traps:
        _trap_card(root, float(traps["card"]))
    return entry.run(connection, spec_bytes)


def _halt(kind: str, step: int, requests: int) -> None:
    honest = Control.say

    def say(self: Control, message: FromTrainer, *, droppable: bool = False) -> None:
        honest(self, message, droppable=droppable)
        if type(message).__name__ == kind and message.global_step >= step:  # type: ignore[union-attr]
            Control.say = honest  # type: ignore[method-assign]
            self._sleep(lambda: len(self._waiting) >= requests or self.must_leave, None)

    Control.say = say  # type: ignore[method-assign]


def _trap_writer(file: Path, traps: dict[str, Any]) -> None:
    if "kill_writer_at" in traps or "fail_writer" in traps:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        os.environ["TRAP_FILE"] = str(file)
        writer_process.WRITER_MODULE = "trap_writer"
        saver.SPACE_RETRY_S = 0.1


def _trap_hunt(quick: bool) -> None:
    """`quick`: forked from here, where torch is loaded already; else as it is meant to be."""

    def fork(
        entry: str, connection: Connection, spec: bytes, output: Path, name: str
    ) -> multiprocessing.process.BaseProcess:
        arguments = (entry, connection, spec, str(output))
        process = multiprocessing.get_context("fork").Process(target=child._first, args=arguments)
        process.start()
        return process

    deaths.HUNTER_ENTRY = "trap_hunt"
    if quick:
        deaths.child = SimpleNamespace(spawn=fork)  # type: ignore[assignment]


def _trap_card(root: Path, wait_s: float) -> None:
    def look(device: torch.device) -> memory.Card:
        others = (root / "others.txt").exists()
        return memory.Card(80 << 30, (1 if others else 70) << 30, 10 << 30)

    memory.look, memory.needed_bytes = look, lambda device: 20 << 30
    memory.WAIT_LIMIT_S, memory.LOOK_EVERY_S = wait_s, 0.05


def trap_steps(root: Path, traps: dict[str, Any]) -> None:
    honest_step, honest_loss = work.Work.step, step.forward_loss_sum

    def traced(self: work.Work) -> None:
        now["step"] = self._session.progress.global_step + 1
        line = {"step": now["step"], "job": self.job.train.job_id, "rows": self.job.rows_of_step()}
        honest_step(self)
        if traps.get("trace"):
            out = self.job.cursor.rows_excluded
            line["graphs"] = int(counters["stats"].get("unique_graphs", 0))
            line["rows"] = [row for row in line["rows"] if row not in out]
            with (root / "trace.jsonl").open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    def trapped(model: Any, batch: Any, penalties: Any = ()) -> torch.Tensor:
        if torch.is_grad_enabled() and batch.tokens > traps.get("oom_tokens", 1 << 60):
            raise torch.OutOfMemoryError("CUDA out of memory (a trap)")
        if torch.is_grad_enabled() and "card" in traps and (root / "others.txt").exists():
            raise torch.OutOfMemoryError("CUDA out of memory (another process)")
        if now["step"] in traps.get("raise_steps", ()):
            raise ZeroDivisionError("a trap")
        kills = bool((batch.input_ids == traps.get("kill_token", -1)).any())
        if kills or (traps.get("kill_always") and now["step"] >= 3):
            if not traps["kill_by"]:
                (root / "hangs").touch()
                time.sleep(3600)
            os.kill(os.getpid(), traps["kill_by"])
        poisoned = bool((batch.input_ids == traps.get("poison_token", -1)).any())
        if poisoned and not traps.get("poison_nan"):
            raise ValueError("a poison row (a trap)")
        loss = honest_loss(model, batch, penalties)
        if now["step"] >= traps.get("spike_from", 1 << 60):
            loss = loss * 40
        if poisoned:
            loss = loss * float("nan")
        if now["step"] in traps.get("nan_steps", ()):
            loss = loss * float("nan")
        return loss

    work.Work.step = traced  # type: ignore[method-assign]
    step.forward_loss_sum = trapped  # type: ignore[assignment]
