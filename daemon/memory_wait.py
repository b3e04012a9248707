"""Waiting for memory after a trainer ended for want of it. Pure: what is needed and what is there
in, the reason to hold out.

Invariant: what is waited for is what the ended trainer had, so that the next one does not end the
same way at once. A person's `resume` ends the waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer_tui.safety.crash import Action, CrashClass, Finding
from trainer_tui.safety.meters import Machine

KIND = "memory"
MARGIN = 1.1
SMALL_SHARE = 0.1  # of the machine, when what the trainer had is not known
FOREIGN_SHARE = 0.5  # what others may still hold of the GPU, of what they held when it ended


@dataclass(frozen=True, slots=True)
class Need:
    """`host_bytes`: to be available on the machine. `foreign_below_bytes`: what other processes
    may hold of the GPU at most; 0: that was not the reason."""

    host_bytes: int = 0
    foreign_below_bytes: int = 0


def need_after(
    finding: Finding, trainer_peak_bytes: int, foreign_bytes: int | None, memory_total_bytes: int
) -> Need | None:
    """What to wait for after this end; None: nothing."""
    if finding.action is not Action.WAIT_FOR_MEMORY:
        return None
    if finding.crash_class is CrashClass.CUDA_OOM:
        return Need(foreign_below_bytes=int((foreign_bytes or 0) * FOREIGN_SHARE))
    known = int(trainer_peak_bytes * MARGIN)
    return Need(host_bytes=known or int(memory_total_bytes * SMALL_SHARE))


def hold(need: Need | None, machine: Machine, foreign_bytes: int | None) -> str:
    """Why training waits; empty when it need not."""
    if need is None:
        return ""
    free = machine.memory_total_bytes - machine.memory_used_bytes
    if free < need.host_bytes <= machine.memory_total_bytes:
        return (
            f"{free / 1e9:.1f} GB of memory are free, the trainer needs"
            f" {need.host_bytes / 1e9:.1f} GB"
        )
    if need.foreign_below_bytes and (foreign_bytes or 0) > need.foreign_below_bytes:
        return (
            f"others hold {(foreign_bytes or 0) / 1e9:.1f} GB of the GPU's memory"
            f" (training goes on below {need.foreign_below_bytes / 1e9:.1f} GB)"
        )
    return ""
