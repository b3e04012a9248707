"""What a contender reports, and the clock that all of them share.

Time is read only where the device has been waited for: after the warm-up and after each repeat
of several steps, never inside. So no contender pays for being measured.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median

import torch


@dataclass(slots=True)
class Measurement:
    """One contender's figures; written as JSON between processes."""

    name: str
    device: str
    tokens_per_s: list[float] = field(default_factory=list)  # one per repeat
    supervised_per_s: list[float] = field(default_factory=list)
    ms_per_step: list[float] = field(default_factory=list)
    peak_gb: float = 0.0  # most memory allocated at once, 1e9 bytes
    reserved_gb: float = 0.0
    start_s: float = 0.0  # from the first step's begin to the end of the warm-up
    losses: list[float] = field(default_factory=list)  # mean per supervised token, each step
    recompiles: int = 0  # graphs compiled after the warm-up
    flops_per_step: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s_median(self) -> float:
        return median(self.tokens_per_s) if self.tokens_per_s else 0.0

    @property
    def supervised_per_s_median(self) -> float:
        return median(self.supervised_per_s) if self.supervised_per_s else 0.0

    @property
    def ms_per_step_median(self) -> float:
        return median(self.ms_per_step) if self.ms_per_step else 0.0


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor()


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))


def versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(slots=True)
class Clock:
    """Call `step_done` after every step; repeats of `steps_per_repeat` follow `warm_steps`."""

    measurement: Measurement
    step_tokens: list[int]
    step_supervised: list[int]
    warm_steps: int
    steps_per_repeat: int
    _done: int = 0
    _since: float = field(default_factory=time.perf_counter)
    _graphs: int = 0

    def step_done(self) -> None:
        self._done += 1
        past_warm_up = self._done - self.warm_steps
        if past_warm_up < 0 or past_warm_up % self.steps_per_repeat:
            return
        wait_for_device()
        now = time.perf_counter()
        if past_warm_up == 0:
            self.measurement.start_s = now - self._since
            self._graphs = graphs_compiled()
        else:
            which = slice(self._done - self.steps_per_repeat, self._done)
            seconds = now - self._since
            self.measurement.tokens_per_s.append(sum(self.step_tokens[which]) / seconds)
            self.measurement.supervised_per_s.append(sum(self.step_supervised[which]) / seconds)
            self.measurement.ms_per_step.append(1e3 * seconds / self.steps_per_repeat)
            self.measurement.recompiles = graphs_compiled() - self._graphs
        self._since = now

    def finish(self) -> None:
        if torch.cuda.is_available():
            self.measurement.peak_gb = torch.cuda.max_memory_allocated() / 1e9
            self.measurement.reserved_gb = torch.cuda.max_memory_reserved() / 1e9
