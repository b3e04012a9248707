"""The step: fetch -> forward/backward -> guard -> optimizer -> publish.

Reads top to bottom. The host waits for the device only where a comment says so: on a GPU a
step's figures are read one step late, when they are there anyway.

Limits: one device. A step's micro-batches would be dealt to ranks in `run`, its count of
supervised tokens reduced in `_supervised_of_all_ranks`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer_tui.engine import memory
from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.head_loss import Penalty, forward_loss_sum
from trainer_tui.engine.micro_batches import split
from trainer_tui.engine.optimizer import MasterAdamW
from trainer_tui.safety import clock

log = logging.getLogger("trainer.step")

TokenMask = tuple[NDArray[np.int32], NDArray[np.bool_]]  # ids [tokens], targets [tokens]
Packs = Sequence[Sequence[TokenMask]]


class RowsFailed(Exception):
    """Forward or backward raised something else than memory: no weight was changed.

    `__cause__` is what was raised.
    """


class UpdateInterrupted(Exception):
    """Memory ran out while weights were being moved: what is in memory is no step boundary."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """A micro-batch with what a behaviour profile adds to its loss."""

    batch: MicroBatch
    penalties: Sequence[Penalty] = ()


Shaper = Callable[[list[TokenMask], torch.device], Shaped]


def plain(documents: list[TokenMask], device: torch.device) -> Shaped:
    """The rows as they are: no weights, no penalties."""
    return Shaped(collate(documents, device))


@dataclass(frozen=True, slots=True)
class StepFigures:
    """A finished step's numbers, on the host."""

    loss: float  # mean over supervised tokens; NaN when the step was skipped for one
    grad_norm: float
    skipped: bool
    tokens: int
    supervised: int
    lengths: tuple[int, ...]
    seconds: float


class PendingStep:
    """A step whose figures may still be on the device."""

    def __init__(
        self,
        figures: Tensor,
        supervised: int,
        lengths: tuple[int, ...],
        started_s: float,
    ) -> None:
        self._supervised = supervised
        self._lengths = lengths
        self._started_s = started_s
        self._ready: torch.cuda.Event | None = None
        if figures.device.type == "cuda":
            self._figures = torch.empty(3, dtype=torch.float32, pin_memory=True)
            self._figures.copy_(figures, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()
        else:
            self._figures = figures
            self._ended_s = clock.monotonic_s()

    def read(self) -> StepFigures:
        """The numbers; on a GPU the host waits here unless a later step has been queued."""
        ended_s = clock.monotonic_s()
        if self._ready is not None:
            self._ready.synchronize()
            ended_s = clock.monotonic_s()
        else:
            ended_s = self._ended_s
        loss, grad_norm, skipped = self._figures.tolist()
        return StepFigures(
            loss=loss / max(self._supervised, 1),
            grad_norm=grad_norm,
            skipped=bool(skipped),
            tokens=sum(self._lengths),
            supervised=self._supervised,
            lengths=self._lengths,
            seconds=ended_s - self._started_s,
        )


@dataclass(slots=True)
class Stepper:
    """Runs steps on one device. `micro_batch_tokens` may change between any two steps.

    `between`: called before every micro-batch with its index, for the heartbeat.
    `before_update`: called once before the optimizer moves the weights.
    """

    model: nn.Module
    optimizer: MasterAdamW
    device: torch.device
    micro_batch_tokens: int
    max_grad_norm: float
    autocast: bool
    shape: Shaper = plain
    fitted: bool = False  # a step of this size was done
    between: Callable[[int], None] = lambda index: None
    before_update: Callable[[], None] = lambda: None

    def run(self, packs: Packs, learning_rate: float) -> PendingStep:
        """One optimizer step over the packs.

        Raises:
            torch.OutOfMemoryError: the micro-batch is too large; no weight was changed and the
                gradients are gone, so the step can be run again with smaller ones.
            RowsFailed: these rows, or anything else, raised; likewise.
        """
        started_s = clock.monotonic_s()
        supervised, lengths = _counts(packs)
        divisor = _supervised_of_all_ranks(supervised)
        try:
            loss_sum = self._forward_backward(packs)
        except Exception as problem:
            self.optimizer.zero_grad()
            if isinstance(problem, torch.OutOfMemoryError):
                raise
            raise RowsFailed(str(problem)) from problem
        # Guard and optimizer: a NaN or an infinity in the gradients skips the update on the
        # device. The device, not the host, waits here for a checkpoint's copy to be through.
        self.before_update()
        try:
            stats = self.optimizer.clip_and_step(learning_rate, float(divisor), self.max_grad_norm)
        except torch.OutOfMemoryError as problem:
            raise UpdateInterrupted(str(problem)) from problem
        self.optimizer.zero_grad()
        self.fitted = True
        figures = torch.stack([loss_sum, stats.grad_norm, stats.skipped])
        return PendingStep(figures, supervised, lengths, started_s)

    def _forward_backward(self, packs: Packs) -> Tensor:
        loss_sum = torch.zeros((), dtype=torch.float32, device=self.device)
        for index, documents in enumerate(split(packs, self.micro_batch_tokens, _length)):
            self.between(index)
            shaped = self.shape(documents, self.device)
            with self.precision():
                loss = forward_loss_sum(self.model, shaped.batch, shaped.penalties)
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        return loss_sum

    def fails(self, documents: Sequence[TokenMask]) -> bool:
        """Whether a step with these documents would raise or give a NaN. Moves no weight, but
        draws random numbers. The host waits for the device.

        Raises:
            torch.OutOfMemoryError: it cannot be said.
        """
        try:
            try:
                loss_sum = self._forward_backward([documents])
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # noqa: BLE001 - any reason counts: it is the question
                log.info("a trial of %d documents failed: %r", len(documents), problem)
                return True
            gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            norm = torch.linalg.vector_norm(torch.stack([*norms, loss_sum]))
            return not bool(torch.isfinite(norm))
        finally:
            self.optimizer.zero_grad()

    def preflight(self, vocabulary: int, longest: int) -> int:
        """A real forward and backward at the largest shape; halves the budget until it fits.

        No weight moves and no random state is used up. Returns the budget that fits.

        Args:
            longest: tokens of the longest document that there may be.

        Raises:
            torch.OutOfMemoryError: not even one such document fits.
        """
        state = torch.get_rng_state(), self._device_rng()
        try:
            while True:
                try:
                    self._try_shape(self.micro_batch_tokens, longest, vocabulary)
                    self.fitted = True
                    return self.micro_batch_tokens
                except torch.OutOfMemoryError:
                    if not self.halve(longest):
                        raise
        finally:
            torch.set_rng_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state(state[1], self.device)

    def halve(self, floor_tokens: int) -> bool:
        """Half the micro-batch, twice the accumulation: the same update. False at the floor."""
        if self.micro_batch_tokens <= floor_tokens:
            return False
        self.micro_batch_tokens = max(floor_tokens, self.micro_batch_tokens // 2)
        self.fitted = False
        memory.forget_peak(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        if not self.autocast:
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield

    def _try_shape(self, budget: int, longest: int, vocabulary: int) -> None:
        ids = np.arange(longest, dtype=np.int32) % vocabulary
        document = (ids, np.ones(longest, dtype=np.bool_))
        packs = [[document] * max(1, budget // longest)]
        try:
            self._forward_backward(packs)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the host waits: once, before the first file
        finally:
            self.optimizer.zero_grad()

    def _device_rng(self) -> Tensor | None:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None


def _length(document: TokenMask) -> int:
    return len(document[0])


def _counts(packs: Packs) -> tuple[int, tuple[int, ...]]:
    """Supervised tokens and the documents' lengths. A document's first token is no target."""
    documents = [document for pack in packs for document in pack]
    supervised = sum(int(np.count_nonzero(mask[1:])) for _, mask in documents)
    return supervised, tuple(len(ids) for ids, _ in documents)


def _supervised_of_all_ranks(supervised: int) -> int:
    """The step's divisor. With several ranks this is where their counts are added up."""
    return max(supervised, 1)
