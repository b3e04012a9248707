"""Capture at a step boundary and hand over to the writer: the trainer's half of a commit.

Invariant: weights, optimizer, random state and progress of one checkpoint are of the same step
boundary. Only the next optimizer step waits for the copy; the disk is the writer's business. A
state with a NaN or an infinity in it is never handed over.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer_tui.engine.checkpoint_files import (
    ImageFile,
    Place,
    SmallFile,
    WriteRequest,
    Written,
)
from trainer_tui.engine.images import TensorImage, all_finite, bytes_of
from trainer_tui.engine.optimizer import MasterAdamW
from trainer_tui.engine.progress import Identity, Progress, to_manifest
from trainer_tui.engine.staging import fits_in_memory
from trainer_tui.engine.writer import WriteFailed
from trainer_tui.engine.writer_process import WriterProcess
from trainer_tui.safety import clock

log = logging.getLogger("trainer.checkpoint")

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "trainer_state.json"
POLL_S = 0.05
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class NotFinite(Exception):
    """The weights hold a NaN or an infinity: nothing was committed and nothing may be."""


@dataclass(frozen=True, slots=True)
class Done:
    """A commit that is on disk. `progress` is the state that it holds."""

    progress: Progress
    written: Written
    reason: str


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """Nothing was committed; the state is still in memory and training may go on."""

    error_number: int
    text: str
    reason: str

    @property
    def disk_full(self) -> bool:
        return self.error_number in NO_SPACE


@dataclass(slots=True)
class _UnderWay:
    progress: Progress
    reason: str
    request: WriteRequest
    finite: Tensor  # bool scalar on the host, valid once `copied` has happened
    copied: torch.cuda.Event | None
    handed_over: bool = False


class Committer:
    """One commit at a time. `weights`: the live ones, by their names in the file. `small_files`:
    config and tokenizer, the same in every checkpoint."""

    def __init__(
        self,
        place: Place,
        lock_fd: int,
        weights: dict[str, Tensor],
        optimizer: MasterAdamW,
        small_files: dict[str, bytes],
        identity: Identity,
    ) -> None:
        self._weights = weights
        self._optimizer = optimizer
        self._identity = identity
        self._small = [SmallFile(name, "model", data) for name, data in small_files.items()]
        self._device = next(iter(weights.values())).device
        on_gpu = self._device.type == "cuda"
        state = optimizer.state_tensors()
        wanted_bytes = bytes_of(self._weights) + bytes_of(state)
        spill = None if fits_in_memory(wanted_bytes) else place.current_model
        if spill is not None:
            log.warning(
                "free memory does not hold %d MB of checkpoint images: they lie in %s",
                wanted_bytes >> 20, spill,
            )  # fmt: skip
        self._weights_image = TensorImage(self._weights, pin=on_gpu, spill=spill)
        self._optimizer_image = TensorImage(state, pin=on_gpu, spill=spill)
        self._copy_stream = _new_stream(self._device) if on_gpu else None
        fds = (lock_fd, self._weights_image.fd, self._optimizer_image.fd)
        self._writer = WriterProcess(place, fds)
        self._under_way: _UnderWay | None = None
        self.last_commit_s = clock.monotonic_s()

    @property
    def busy(self) -> bool:
        return self._under_way is not None

    @property
    def bytes_written(self) -> int:
        return self._writer.bytes_written

    @property
    def writer_pid(self) -> int:
        return self._writer.pid

    def begin(self, progress: Progress, state: dict[str, Any], reason: str) -> None:
        """Capture the live tensors with `progress` and `state` (both of this step boundary)."""
        assert self._under_way is None, "one commit at a time"
        finite, copied = self._capture()
        images = [
            ImageFile(WEIGHTS, "weights", self._weights_image.fd, self._weights_image.bytes),
            ImageFile(
                OPTIMIZER, "optimizer", self._optimizer_image.fd, self._optimizer_image.bytes
            ),
        ]
        text = json.dumps(state, sort_keys=True, indent=1).encode()
        request = WriteRequest(
            to_manifest(progress, self._identity, reason),
            list(progress.completed),
            images,
            [*self._small, SmallFile(STATE, "state", text)],
        )
        self._under_way = _UnderWay(progress, reason, request, finite, copied)
        self.poll_copy()

    def _capture(self) -> tuple[Tensor, torch.cuda.Event | None]:
        optimizer = self._optimizer.state_tensors()
        every = (*self._weights.values(), *optimizer.values())
        if self._copy_stream is None:
            self._weights_image.capture(self._weights)
            self._optimizer_image.capture(optimizer)
            return all_finite(every), None
        self._copy_stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copy_stream):
            finite = torch.empty((), dtype=torch.bool, pin_memory=True)
            finite.copy_(all_finite(every), non_blocking=True)
            self._weights_image.capture(self._weights)
            self._optimizer_image.capture(optimizer)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return finite, copied

    def hold_optimizer(self) -> None:
        """Before an optimizer step: the device (not the host) waits for a copy under way."""
        if self._under_way is not None and self._under_way.copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._under_way.copied)

    def poll_copy(self) -> None:
        """Hand over to the writer once the copy is complete.

        Raises:
            NotFinite: the state must not be committed.
        """
        work = self._under_way
        if work is None or work.handed_over or not _has_happened(work.copied):
            return
        if not bool(work.finite):
            self._under_way = None
            raise NotFinite
        work.handed_over = True
        self._writer.begin(work.request)

    def poll(self, timeout_s: float = 0.0) -> Done | CommitFailed | None:
        """What became of the commit under way, once it is known. Raises NotFinite."""
        self.poll_copy()
        work = self._under_way
        if work is None or not work.handed_over:
            return None
        answer = self._writer.poll(timeout_s)
        match answer:
            case None:
                return None
            case Written():
                self._under_way = None
                self.last_commit_s = clock.monotonic_s()
                return Done(work.progress, answer, work.reason)
            case WriteFailed():
                self._under_way = None
                return CommitFailed(answer.error_number, answer.text, work.reason)

    def finish(self, beat: Callable[[int], None]) -> Done | CommitFailed | None:
        """Wait for the commit under way; `beat(bytes_written)` whenever bytes have moved.

        Raises:
            NotFinite: the state must not be committed.
        """
        work, moved = self._under_way, -1
        if work is None:
            return None
        if work.copied is not None:
            work.copied.synchronize()  # the host waits for the copy: somebody waits for the commit
        while self._under_way is not None:
            answer = self.poll(POLL_S)
            if answer is not None:
                return answer
            if self.bytes_written != moved:
                moved = self.bytes_written
                beat(moved)
        return None

    def close(self) -> None:
        self._writer.close()


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _has_happened(event: torch.cuda.Event | None) -> bool:
    return event is None or bool(event.query())  # type: ignore[no-untyped-call]
