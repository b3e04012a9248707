"""A process in which a step is tried that may end it: everything as in the trainer, but no weight
moves and nothing is written.

It opens the file at the step where the processes ended, says which documents are in it, and then
answers for any of them whether a step fails. On a GPU the step before is tried with it: its
kernels may be what the next step was blamed for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import torch

from trainer_tui.engine.attention import attach_packed_attention
from trainer_tui.engine.deaths import Request
from trainer_tui.engine.fast_blocks import compile_where_it_helps
from trainer_tui.engine.feed import Job, JobRefusal, Opener, Pinned
from trainer_tui.engine.hunt import Opened
from trainer_tui.engine.loading import Loaded, load
from trainer_tui.engine.step import Stepper
from trainer_tui.engine.step_mark import Place
from trainer_tui.engine.trainer import pick_device, stepper_of
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("trainer.trial")
REFERENCE_DOCUMENTS = 4


def run(connection: Connection, spec: bytes) -> int:
    """The trial process, from birth to exit code; ends when nothing more is asked."""
    request = msgspec.json.decode(spec, type=Request)
    try:
        trial = Trial(request)
    except (JobRefusal, TrainerTuiError) as problem:
        connection.send_bytes(msgspec.json.encode(Opened(problem=problem.message)))
        return 1
    connection.send_bytes(msgspec.json.encode(trial.opened))
    while True:
        try:
            documents = msgspec.json.decode(connection.recv_bytes(), type=list[int])
        except EOFError:
            return 0
        connection.send_bytes(b"fails" if trial.fails(documents) else b"fine")


class Trial:
    """Raises JobRefusal, TrainerTuiError: the file or the model cannot be opened."""

    def __init__(self, request: Request) -> None:
        workspace = Workspace(Path(request.workspace))
        config = Config.model_validate(request.config)
        device = pick_device(config)
        loaded = load(workspace, config, device, lambda moved: None)
        self._stepper = _stepper(loaded, config, device)
        self._job = _job_at(request.place, workspace, config, loaded)
        self._stepper.shape = self._job.profile.shape
        self._floor_tokens = config.max_length
        self.opened = self._open()

    def _open(self) -> Opened:
        job = self._job
        packs = job.packs_at(job.cursor.step_index)
        if self._stepper.device.type == "cuda" and job.cursor.step_index:
            packs = job.packs_at(job.cursor.step_index - 1) + packs
        documents = [index for pack in packs for index in pack]
        lines = [int(job.tokens.rows[index]) for index in documents]
        beside = [at for at in job.other_documents(REFERENCE_DOCUMENTS) if at not in documents]
        return Opened(documents, lines, beside, job.rows)

    def fails(self, documents: Sequence[int]) -> bool:
        """Ends the process when these documents do."""
        while True:
            try:
                return self._stepper.fails(self._job.documents(documents))
            except torch.OutOfMemoryError:
                if not self._stepper.halve(self._floor_tokens):
                    return True


def _stepper(loaded: Loaded, config: Config, device: torch.device) -> Stepper:
    compute = torch.bfloat16 if loaded.precision.autocast else None
    attach_packed_attention(loaded.model, config.attention, compute)
    compile_where_it_helps(loaded.model, device, loaded.precision.memory_budget)
    return stepper_of(loaded, config, device)


def _job_at(place: Place, workspace: Workspace, config: Config, loaded: Loaded) -> Job:
    """The job as the process that ended had it, at its step."""
    kept: dict[str, Any] = loaded.state.get("pinned", {}).get(str(place.job_id), {})
    pinned = Pinned.from_dict(kept) if kept else None
    opener = Opener(workspace, config, loaded.template, loaded.stop_id, lambda: None)
    job = opener.open(place.train, loaded.progress.cursor_of(place.job_id), pinned)
    if job.cursor.plan != place.plan:
        raise JobRefusal("plan_changed", f"{place.name} is planned otherwise now")
    job.seek(msgspec.structs.replace(job.cursor, epoch=place.epoch, step_index=place.step_index))
    return job
