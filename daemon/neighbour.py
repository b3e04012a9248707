"""Living beside others on a GPU: too hot, or too much memory taken by others, pauses training.

Pure: figures in, the reason to hold out. What begins at one limit ends only at a lower one, so
that training does not flutter.
"""

from __future__ import annotations

from trainer_tui.safety.config import Gpu as Limits
from trainer_tui.safety.meters import Machine

GB = 1_000_000_000
FOREIGN_RESUME_SHARE = 0.8


def hold(machine: Machine, limits: Limits, foreign_bytes: int | None, holding: str) -> str:
    """Why training has to stand still; empty when it need not.

    Args:
        foreign_bytes: GPU memory used by processes that are not ours; None when not known.
        holding: what this said last.
    """
    return _too_hot(machine, limits, holding) or _crowded(limits, foreign_bytes, holding)


def _too_hot(machine: Machine, limits: Limits, holding: str) -> str:
    limit = limits.max_temperature_c
    if holding.startswith("GPU") and "°C" in holding:
        limit = min(limits.resume_temperature_c, limits.max_temperature_c)
    hot = [gpu for gpu in machine.gpus if gpu.temperature_c is not None]
    hottest = max(hot, key=lambda gpu: gpu.temperature_c or 0, default=None)
    if hottest is None or hottest.temperature_c is None or hottest.temperature_c < limit:
        return ""
    return (
        f"GPU {hottest.index} is at {hottest.temperature_c} °C"
        f" (training goes on below {limits.resume_temperature_c} °C)"
    )


def _crowded(limits: Limits, foreign_bytes: int | None, holding: str) -> str:
    if not limits.foreign_memory_gb or foreign_bytes is None:
        return ""
    limit_gb = limits.foreign_memory_gb
    if holding.startswith("others use"):
        limit_gb *= FOREIGN_RESUME_SHARE
    if foreign_bytes < limit_gb * GB:
        return ""
    return (
        f"others use {foreign_bytes / GB:.1f} GB of the GPU's memory"
        f" (limit {limits.foreign_memory_gb:g} GB)"
    )
