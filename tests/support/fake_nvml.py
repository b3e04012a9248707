"""NVML as far as `safety.meters` asks it, told what to say by a JSON file named in `FAKE_NVML`.

    {"temperature": 50, "foreign_bytes": 0, "lost": false, "xids": [79], "ecc": 0, "pending": 0,
     "reasons": 0, "ecc_answer": "Unknown"}

`ecc_answer` is what the question for memory errors is refused with. `xids` are events: each is
given once. `use(daemon)` puts it in the place of pynvml in a daemon.
`tests/safety/test_gpu_health.py` compares it with the real module.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_TEMPERATURE_GPU = 0
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
nvmlEventTypeXidCriticalError = 8
nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80
PRELUDE = "import sys, fake_nvml; sys.modules['pynvml'] = fake_nvml"
_told: list[int] = []


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    def __str__(self) -> str:
        return "GPU is lost"


class NVMLError_Timeout(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class NVMLError_Uninitialized(NVMLError):
    pass


def say(path: Path, **state: Any) -> None:
    """Change what the cards say, as one step."""
    staged = path.with_name("nvml.new")
    staged.write_text(json.dumps(state))
    staged.replace(path)


def _state() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(os.environ["FAKE_NVML"]).read_bytes())
    except FileNotFoundError:
        return {}
    return found


def _well() -> dict[str, Any]:
    state = _state()
    if state.get("lost"):
        raise NVMLError_GpuIsLost
    return state


def nvmlInit() -> None:
    pass


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return "Pretended GPU"


def nvmlDeviceGetUtilizationRates(handle: int) -> Any:
    _well()
    return SimpleNamespace(gpu=50, memory=10)


def nvmlDeviceGetMemoryInfo(handle: int) -> Any:
    return SimpleNamespace(used=1 << 30, total=80 << 30)


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    return 300_000


def nvmlDeviceGetEnforcedPowerLimit(handle: int) -> int:
    raise NVMLError_NotSupported


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
    return int(_well().get("temperature", 50))


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[Any]:
    return [SimpleNamespace(pid=1, usedGpuMemory=int(_well().get("foreign_bytes", 0)))]


def nvmlDeviceGetTotalEccErrors(handle: int, kind: int, counter: int) -> int:
    state = _well()
    if refused := state.get("ecc_answer"):
        raise globals()[f"NVMLError_{refused}"]
    return int(state.get("ecc", 0))


def nvmlDeviceGetRetiredPagesPendingStatus(handle: int) -> int:
    raise NVMLError_NotSupported  # as on cards that remap rows


def nvmlDeviceGetRemappedRows(handle: int) -> tuple[int, int, int, int]:
    return 0, 0, int(_well().get("pending", 0)), int(_well().get("remap_failed", 0))


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int) -> int:
    return int(_well().get("reasons", 0))


def nvmlEventSetCreate() -> str:
    return "set"


def nvmlDeviceRegisterEvents(handle: int, kinds: int, events: str) -> None:
    assert kinds == nvmlEventTypeXidCriticalError


def nvmlEventSetWait_v2(events: str, timeout_ms: int) -> Any:
    waiting = [int(number) for number in _state().get("xids", [])][len(_told) :]
    if not waiting:
        raise NVMLError_Timeout
    _told.append(waiting[0])
    return SimpleNamespace(eventData=waiting[0], eventType=nvmlEventTypeXidCriticalError)
