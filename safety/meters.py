"""GPU, memory, processor and disk figures. A GPU that is absent or lost is a value, no error."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer_tui.safety import clock, config, filesystems, gpu_health
from trainer_tui.safety.filesystems import Measure, Measured
from trainer_tui.safety.gpu_health import Counters, Health, Xid
from trainer_tui.safety.workspace import Workspace

XIDS_KEPT = 64
DEFAULT_FLOOR = filesystems.floor_of(config.Disk())


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. None: this driver does not tell."""

    index: int
    name: str
    utilisation_percent: int | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    faults: Counters = gpu_health.NOT_TOLD


@dataclass(frozen=True, slots=True)
class Machine:
    """A sample of the whole machine. `load_percent` is of all cores together.

    `disk_…`: of the workspace's filesystem with the least room above what has to stay free;
    `disk_place` names it as `GET /v1/disk` does, empty for the root's own.
    """

    gpus: tuple[Gpu, ...]
    gpu_problem: str
    cores: int
    load_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    swap_used_bytes: int
    disk_used_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
    disk_place: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Load:
    """The busy share of all cores, whichever thread asks: psutil counts for each thread by itself,
    and would say 0 to one that never asked."""

    def __init__(self) -> None:
        self._busy_s, self._total_s = self._seconds()
        self._percent = 0.0

    def percent(self) -> float:
        """Since the last time; within one tick of the kernel's clock: the same as then."""
        busy_s, total_s = self._seconds()
        if (passed_s := total_s - self._total_s) > 0:
            # The time spent waiting for a disk may fall: Linux promises nothing of it.
            share = (busy_s - self._busy_s) / passed_s
            self._percent = 100 * min(max(share, 0.0), 1.0)
            self._busy_s, self._total_s = busy_s, total_s
        return self._percent

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Busy, and all, of every core since the start of the machine."""
        times = psutil.cpu_times()
        total_s = sum(times) - times.guest - times.guest_nice  # Linux has these in user and nice
        return total_s - times.idle - times.iowait, total_s


class Meters:
    """Samples the machine. NVML is opened once and opened again after it was lost.

    `floor`: bytes that have to stay free on a disk, by its size.
    """

    def __init__(
        self,
        workspace_root: Path,
        floor: Callable[[int], int] = DEFAULT_FLOOR,
        measuring: Measure = filesystems.measure,
    ) -> None:
        self._workspace = Workspace(workspace_root)
        self._floor, self._measuring = floor, measuring
        self._nvml: Any = None
        self._health: Health | None = None
        self._had_gpus = False
        self._xids: deque[tuple[float, Xid]] = deque(maxlen=XIDS_KEPT)  # by monotonic time
        self._load = Load()

    def sample(self) -> Machine:
        """About a millisecond without a GPU, a few with one."""
        gpus, problem = self._sample_gpus()
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        place, room = self._tightest_disk()
        return Machine(
            gpus=gpus,
            gpu_problem=problem,
            cores=os.cpu_count() or 1,
            load_percent=round(self._load.percent(), 1),
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            swap_used_bytes=swap.used,
            disk_used_bytes=room.total_bytes - room.free_bytes,
            disk_free_bytes=room.free_bytes,
            disk_total_bytes=room.total_bytes,
            disk_place=place,
        )

    def _tightest_disk(self) -> tuple[str, Measured]:
        try:
            found = filesystems.survey(self._workspace, self._measuring, self._floor, 0, {})
            tight = filesystems.tightest(found)
            return tight.name, self._measuring(tight.places[0])
        except OSError:  # a disk that cannot be asked: the disk's watch tells of it
            return "", self._measuring(self._workspace.root)

    def foreign_gpu_bytes(self, ours: frozenset[int]) -> int | None:
        """GPU memory of compute processes whose pid is not in `ours`, on the card where it is
        most. None when there is no GPU or the driver does not tell."""
        import pynvml

        if self._nvml is None:
            return None
        most: int | None = None
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
                used = sum(p.usedGpuMemory or 0 for p in running if p.pid not in ours)
                most = max(most or 0, used)
        except pynvml.NVMLError:
            return None
        return most

    def _note_xids(self) -> None:
        health = self._health  # the rounds and a crash's evidence may look at once
        if health is not None:
            self._xids += [(clock.monotonic_s(), xid) for xid in health.new_xids()]

    def gpu_evidence(self, since_s: float, before: tuple[Gpu, ...]) -> tuple[str, list[Xid]]:
        """What NVML and the kernel's log say of the cards; in a thread, after a trainer's end.

        Args:
            since_s: when the trainer began (monotonic).
            before: the cards as they were then; empty when it ended before they were looked at.

        Returns:
            The complaint of the cards now (empty: none), and the Xids since then.
        """
        gpus, problem = self._sample_gpus()
        complaint = problem if self._had_gpus and not gpus else ""
        old = {gpu.index: gpu.faults for gpu in before}
        found = [(gpu, gpu_health.worse(old.get(gpu.index), gpu.faults)) for gpu in gpus]
        complaints = [f"GPU {gpu.index}: {text}" for gpu, text in found if text]
        xids = [xid for at_s, xid in self._xids if at_s >= since_s]
        return "; ".join([*filter(None, [complaint]), *complaints]), [
            *xids,
            *(gpu_health.from_kernel_log(since_s) if self._had_gpus else []),
        ]

    def _sample_gpus(self) -> tuple[tuple[Gpu, ...], str]:
        import pynvml

        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml, self._health = pynvml, Health(pynvml)
            count = pynvml.nvmlDeviceGetCount()
            gpus = tuple(_sample_gpu(pynvml, index, self._health) for index in range(count))
            self._had_gpus = self._had_gpus or bool(gpus)
            self._note_xids()
            return gpus, ""
        except pynvml.NVMLError as problem:
            self._note_xids()  # what the driver said of a card that is lost now
            if self._nvml is not None:
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()
            self._nvml = self._health = None
            return (), str(problem)


def _sample_gpu(nvml: Any, index: int, health: Health | None) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: str, *more: Any) -> Any:
        return gpu_health.told(nvml, question, handle, *more)

    name = ask("nvmlDeviceGetName")
    use = ask("nvmlDeviceGetUtilizationRates")
    memory = ask("nvmlDeviceGetMemoryInfo")
    power = ask("nvmlDeviceGetPowerUsage")
    limit = ask("nvmlDeviceGetEnforcedPowerLimit")
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name or "GPU"),
        utilisation_percent=use.gpu if use else None,
        memory_used_bytes=memory.used if memory else None,
        memory_total_bytes=memory.total if memory else None,
        temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        power_w=power / 1000 if power is not None else None,
        power_limit_w=limit / 1000 if limit is not None else None,
        faults=health.counters(handle) if health else gpu_health.NOT_TOLD,
    )
