"""GPU, memory, processor and disk figures. A GPU that is absent or lost is a value, no error."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil


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


@dataclass(frozen=True, slots=True)
class Machine:
    """A sample of the whole machine. `load_percent` is of all cores together."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Meters:
    """Samples the machine. NVML is opened once and opened again after it was lost."""

    def __init__(self, workspace_root: Path) -> None:
        self._root = workspace_root
        self._nvml: Any = None
        psutil.cpu_percent(None)  # the first call only starts the interval

    def sample(self) -> Machine:
        """About a millisecond without a GPU, a few with one."""
        gpus, problem = self._sample_gpus()
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        disk = shutil.disk_usage(self._root)
        return Machine(
            gpus=gpus,
            gpu_problem=problem,
            cores=os.cpu_count() or 1,
            load_percent=psutil.cpu_percent(None),
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            swap_used_bytes=swap.used,
            disk_used_bytes=disk.used,
            disk_free_bytes=disk.free,
            disk_total_bytes=disk.total,
        )

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

    def _sample_gpus(self) -> tuple[tuple[Gpu, ...], str]:
        import pynvml

        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            count = pynvml.nvmlDeviceGetCount()
            return tuple(_sample_gpu(pynvml, index) for index in range(count)), ""
        except pynvml.NVMLError as problem:
            if self._nvml is not None:
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()
            self._nvml = None
            return (), str(problem)


def _sample_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Any, *more: Any) -> Any:
        try:
            return question(handle, *more)
        except nvml.NVMLError_NotSupported:
            return None

    name = ask(nvml.nvmlDeviceGetName)
    use = ask(nvml.nvmlDeviceGetUtilizationRates)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    power = ask(nvml.nvmlDeviceGetPowerUsage)
    limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name or "GPU"),
        utilisation_percent=use.gpu if use else None,
        memory_used_bytes=memory.used if memory else None,
        memory_total_bytes=memory.total if memory else None,
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_w=power / 1000 if power is not None else None,
        power_limit_w=limit / 1000 if limit is not None else None,
    )
