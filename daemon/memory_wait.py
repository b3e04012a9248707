"""After a trainer ended for want of memory: wait for it, or begin the next with smaller steps.

Waiting is pure: what is needed and what is there in, the reason to hold out.

Invariant: what is waited for is what the ended trainer had, so that the next one does not end the
same way at once. A person's `resume` ends the waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.crash import Action, CrashClass, Finding
from trainer_tui.safety.meters import Machine

KIND = "memory"
MARGIN = 1.1
SMALL_SHARE = 0.1  # of the machine, when what the trainer had is not known
SMALLEST_MICRO_BATCH = 256  # tokens; a longer row makes a micro-batch of its own
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


def halve_micro_batches(cache: Path) -> dict[str, int]:
    """Let the next trainer begin with half of what was taken to fit (the engine's hint in
    `cache/micro_batch.json`, by kind of GPU). The updates stay the same: how a step is divided is
    execution, not plan. Returns the sizes now; empty when there was no hint.

    Raises:
        OSError: it could not be written.
    """
    file = cache / "micro_batch.json"
    try:
        sizes = msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
    halved = {kind: max(SMALLEST_MICRO_BATCH, size // 2) for kind, size in sizes.items()}
    durable.replace_view(file, msgspec.json.encode(halved))
    return halved
