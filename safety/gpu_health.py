"""Whether a graphics card is broken: what NVML counts, and the Xid errors of NVIDIA's driver.

Xids come from NVML's events (no privilege needed, registered while the daemon runs) and, where a
person's system lets us read it, from the kernel's log. A card that is absent is no fault. Pure but
for `Health`, which talks to NVML, and `from_kernel_log`, which reads a device or runs journalctl.

Source: NVIDIA, "XID Errors" (docs.nvidia.com/deploy/xid-errors) and the NVML reference.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KMSG = Path("/dev/kmsg")
KMSG_RECORD_BYTES = 8192
LOG_BYTES = 4 << 20  # of the kernel's log at most: its ring is smaller
JOURNAL_TIMEOUT_S = 5.0

# What a program did to its own context; the card itself is well. The rest of the known ones is
# trouble of the card, its memory, its links or its driver.
_OF_PROGRAMS = frozenset({8, 13, 31, 43, 45, 68, 69})
_OF_HARDWARE = {
    48: "a memory error that ECC could not correct",
    56: "the display engine failed",
    57: "the memory interface failed",
    58: "the memory interface failed",
    61: "an internal breakpoint of the card's controller",
    62: "the card's controller halted",
    63: "a memory row was remapped or a page retired",
    64: "a memory row could not be remapped",
    74: "NVLink failed",
    79: "the card has fallen off the bus",
    92: "many memory errors that ECC corrected",
    94: "a contained memory error",
    95: "an uncontained memory error",
    109: "a context switch timed out",
    110: "a security fault of the card",
    119: "the card's system processor does not answer",
    120: "the card's system processor failed",
    140: "a memory error that ECC could not correct",
    154: "the card needs to be reset",
}
_LINE = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)(?:, pid='?(\d+)'?)?(.*)")


@dataclass(frozen=True, slots=True)
class Xid:
    """An error that the driver reported. `pid`: whose doing, where it says so."""

    number: int
    text: str
    pid: int | None = None

    @property
    def of_the_card(self) -> bool:
        """Trouble of the card, not of the program that ran on it."""
        return self.number in _OF_HARDWARE

    @property
    def of_a_program(self) -> bool:
        return self.number in _OF_PROGRAMS


@dataclass(frozen=True, slots=True)
class Counters:
    """What one card counts and says. None: it does not tell.

    `slowed_by`: why it runs slower than it could, for its own protection; empty: it does not.
    """

    ecc_uncorrected: int | None = None
    pages_pending: bool | None = None
    remap_failed: bool | None = None
    slowed_by: str = ""


def describe(number: int) -> str:
    return _OF_HARDWARE.get(
        number, "a fault of the program's own" if number in _OF_PROGRAMS else ""
    )


def from_lines(lines: Iterable[str]) -> list[Xid]:
    """The Xids among lines of the kernel's log."""
    found = []
    for line in lines:
        if match := _LINE.search(line):
            number, pid = int(match[2]), match[3]
            said = match[4].strip(" ,")
            text = f"Xid {number} on {match[1]}: {describe(number) or said}"
            found.append(Xid(number, text[:300], int(pid) if pid else None))
    return found


def from_kernel_log(since_s: float, kmsg: Path = KMSG) -> list[Xid]:
    """Xids that the kernel logged since `since_s` (monotonic). Nothing where we may not read it."""
    lines = _read_kmsg(kmsg, since_s)
    if lines is None:
        lines = _read_journal(since_s)
    return from_lines(lines)


def _read_kmsg(kmsg: Path, since_s: float) -> list[str] | None:
    """Records since then: "priority,sequence,microseconds,flags;text" (kernel ABI, dev-kmsg)."""
    try:
        fd = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    lines, left = [], LOG_BYTES
    try:
        while left > 0:
            try:
                record = os.read(fd, KMSG_RECORD_BYTES)
            except BrokenPipeError:  # it was overwritten before we came to it: the next one
                continue
            except OSError:  # EAGAIN: that was all
                break
            if not record:
                break
            left -= len(record)
            for text in record.decode("utf-8", "replace").splitlines():
                head, _, said = text.partition(";")
                fields = head.split(",")
                if len(fields) >= 3 and fields[2].isdigit() and int(fields[2]) / 1e6 >= since_s:
                    lines.append(said)
    finally:
        os.close(fd)
    return lines


def _read_journal(since_s: float) -> list[str]:
    command = ["journalctl", "-k", "-b", "-q", "--no-pager", "-o", "short-monotonic", "-n", "2000"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=JOURNAL_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        stamp, _, said = line.removeprefix("[").partition("]")
        with contextlib.suppress(ValueError):
            if float(stamp) >= since_s:
                found.append(said)
    return found


# Answers that mean the card or the whole library is away. Any other answer is about one figure:
# an old driver, a missing right, a WSL2 that does not know it.
_AWAY = frozenset(
    f"NVMLError_{name}"
    for name in (
        "GpuIsLost", "ResetRequired", "Uninitialized", "DriverNotLoaded",
        "LibraryNotFound", "LibRmVersionMismatch",
    )
)  # fmt: skip


def told(nvml: Any, question: str, *arguments: Any) -> Any:
    """What NVML answers to one question; None when it does not tell that.

    Raises:
        NVMLError: the card is lost, or NVML itself is away.
    """
    try:
        return getattr(nvml, question)(*arguments)
    except AttributeError:  # an older NVML has no such question
        return None
    except nvml.NVMLError as problem:
        if type(problem).__name__ in _AWAY:
            raise
        return None


class Health:
    """NVML's Xid events and fault counters. Made anew when NVML was lost."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._events: Any = None
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            self._events = nvml.nvmlEventSetCreate()
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                with contextlib.suppress(nvml.NVMLError):
                    kind = nvml.nvmlEventTypeXidCriticalError
                    nvml.nvmlDeviceRegisterEvents(handle, kind, self._events)

    def new_xids(self) -> list[Xid]:
        """What came since the last time; never waits. The events name no process."""
        found: list[Xid] = []
        if self._events is None:
            return found
        with contextlib.suppress(self._nvml.NVMLError):  # NVMLError_Timeout: no more of them
            while len(found) < 64:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                number = int(event.eventData)
                found.append(Xid(number, f"Xid {number}: {describe(number) or 'reported by NVML'}"))
        return found

    def counters(self, handle: Any) -> Counters:
        """Raises NVMLError when the card is lost; what it does not tell is None."""
        nvml = self._nvml
        errors = told(
            nvml,
            "nvmlDeviceGetTotalEccErrors",
            handle,
            getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1),
            getattr(nvml, "NVML_VOLATILE_ECC", 0),
        )
        pending = told(nvml, "nvmlDeviceGetRetiredPagesPendingStatus", handle)
        # corrected, uncorrected, pending, failed
        rows = told(nvml, "nvmlDeviceGetRemappedRows", handle)
        reasons = told(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        waits = [bool(flag) for flag in (pending, rows[2] if rows else None) if flag is not None]
        return Counters(
            ecc_uncorrected=errors,
            pages_pending=any(waits) if waits else None,
            remap_failed=bool(rows[3]) if rows else None,
            slowed_by=_slowed_by(nvml, reasons or 0),
        )


def _slowed_by(nvml: Any, reasons: int) -> str:
    words = (
        ("nvmlClocksThrottleReasonHwThermalSlowdown", "heat (hardware)"),
        ("nvmlClocksThrottleReasonSwThermalSlowdown", "heat"),
        ("nvmlClocksThrottleReasonHwPowerBrakeSlowdown", "the power supply"),
    )
    return ", ".join(text for name, text in words if reasons & getattr(nvml, name, 0))


NOT_TOLD = Counters()


def worse(before: Counters | None, now: Counters) -> str:
    """What went wrong with a card between two looks; empty: nothing.

    A figure that the card did not tell at the first look may be as old as the card: no complaint.
    """
    old = before or Counters(remap_failed=False, pages_pending=False)
    if old.ecc_uncorrected is not None and (now.ecc_uncorrected or 0) > old.ecc_uncorrected:
        risen = (now.ecc_uncorrected or 0) - old.ecc_uncorrected
        return f"{risen} memory errors that ECC could not correct"
    if now.remap_failed and old.remap_failed is False:
        return "a memory row could not be remapped"
    if now.pages_pending and old.pages_pending is False:
        return "memory pages wait to be retired: the card needs a reset"
    return ""
