"""Rates and figures of finished steps, and where they go besides the pipe.

Limits: times are between steps on the host's clock; on a GPU they are right on average, since
the host runs at most one step ahead.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from trainer_tui.engine.model_math import (
    ModelMath,
    math_of,
    model_flops_utilisation,
    peak_flops,
)
from trainer_tui.engine.step import StepFigures
from trainer_tui.safety import clock

log = logging.getLogger("trainer.metrics")
WINDOW_STEPS = 256  # step times kept for percentiles


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened since the last report."""

    tokens: int
    supervised_tokens: int
    tokens_per_s: float
    supervised_tokens_per_s: float
    step_s: float
    mfu: float
    step_s_p50: float
    step_s_p90: float
    memory_bytes: int


class Meter:
    """Adds up steps between two reports. Pauses and evaluations are left out of the rates."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._model = model
        self._peak = peak_flops(device)
        self._step_s: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._last_end_s: float | None = None
        self._reset()

    @cached_property
    def _math(self) -> ModelMath:
        """Read at the first step: what runs on few rows is known once the model is prepared."""
        return math_of(self._model)

    def _reset(self) -> None:
        self._seconds = 0.0
        self._steps = self._tokens = self._supervised = self._flops = 0

    def interrupted(self) -> None:
        """Something else than a step happened: the next step's time starts anew."""
        self._last_end_s = None

    def add(self, figures: StepFigures) -> float:
        """Count a step; returns the seconds it took."""
        now_s = clock.monotonic_s()
        # Between two steps' ends lies the whole step, data and publishing included.
        seconds = figures.seconds if self._last_end_s is None else now_s - self._last_end_s
        self._last_end_s = now_s
        self._step_s.append(seconds)
        self._seconds += seconds
        self._steps += 1
        self._tokens += figures.tokens
        self._supervised += figures.supervised
        self._flops += self._math.step_flops(figures.lengths, figures.supervised)
        return seconds

    def report(self) -> Interval:
        """Figures since the last report, which this one replaces."""
        seconds = max(self._seconds, 1e-9)
        ordered = sorted(self._step_s)
        interval = Interval(
            tokens=self._tokens,
            supervised_tokens=self._supervised,
            tokens_per_s=self._tokens / seconds,
            supervised_tokens_per_s=self._supervised / seconds,
            step_s=self._seconds / max(self._steps, 1),
            mfu=model_flops_utilisation(self._flops, self._seconds, self._peak) or 0.0,
            step_s_p50=percentile(ordered, 0.5),
            step_s_p90=percentile(ordered, 0.9),
            memory_bytes=self._memory_bytes(),
        )
        self._reset()
        return interval

    def _memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return resident_bytes()


def percentile(ordered: list[float], share: float) -> float:
    """Nearest-rank percentile of sorted values; 0 for none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def resident_bytes() -> int:
    """Resident memory of this process (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Sink(Protocol):
    """Somewhere else that wants the numbers; it must not raise and must not wait."""

    def step(self, global_step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files for TensorBoard, when the `tensorboard` package is installed."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def step(self, global_step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step)

    def close(self) -> None:
        self._writer.close()


def open_sinks(wanted: bool, folder: Path) -> tuple[list[Sink], str]:
    """The sinks that the settings ask for, and a note when one cannot be had."""
    if not wanted:
        return [], ""
    try:
        return [TensorBoardSink(folder)], ""
    except ImportError:
        return [], "tensorboard = true, but the package is not there: pip install tensorboard"
