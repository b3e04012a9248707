"""Why the trainer ended, from the best evidence there is, and what follows from it.

The ladder, strongest first: what we did ourselves (a hang we ended, a stop a person asked for),
the child's own `error.json`, the counters of the kernel's OOM killer, faulthandler's text, errno
with the disk's free space, NVML. "Killed" alone is not out of memory: it is `unknown` until a
counter says so. Pure: evidence in, finding out.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import cgroup
from trainer_tui.safety.gpu_health import Xid


class CrashClass(StrEnum):
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    CUDA_STICKY = "cuda_sticky"
    GPU_HARDWARE = "gpu_hardware"
    DISK_FULL = "disk_full"
    IO_ERROR = "io_error"
    READ_ONLY = "read_only"
    NAN = "nan"
    DATA_ERROR = "data_error"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    CONFIG = "config"
    CODE_BUG = "code_bug"
    HANG = "hang"
    KILLED_BY_USER = "killed_by_user"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the daemon does by itself."""

    SMALLER_MICRO_BATCH = "smaller_micro_batch"
    WAIT_FOR_MEMORY = "wait_for_memory"
    NEW_PROCESS = "new_process"
    PAUSE = "pause"
    PARK_FILE = "park_file"
    PREVIOUS_CHECKPOINT = "previous_checkpoint"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known when a trainer has ended.

    Attributes:
        exit_code: as `Popen.returncode`: negative is a signal; None when it is not known.
        reported: the trainer's `error.json` or `Failed` message; None when it left none.
        ended_by_us: "hang" when the hang monitor ended it, "stop" when a person's wish did.
        oom_kills: how many processes the kernel's OOM killer ended during the trainer's life.
        fault_text: the end of the trainer's stderr.
        disk_free_bytes: of the workspace's filesystem, or of the checkpoints' where that has less.
        gpu_problem: NVML's complaint now; empty when the cards answer and count nothing new.
        xids: errors that the driver reported during the trainer's life.
        foreign_gpu_bytes: what other processes held of the GPU's memory; None: not known.
    """

    exit_code: int | None
    reported: dict[str, Any] | None = None
    ended_by_us: str = ""
    oom_kills: int = 0
    fault_text: str = ""
    disk_free_bytes: int | None = None
    gpu_problem: str = ""
    xids: tuple[Xid, ...] = ()
    foreign_gpu_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """`permanent`: the same file would fail the same way, so it is not tried again."""

    crash_class: CrashClass
    action: Action
    text: str
    suggestion: str
    permanent: bool = False


DISK_FULL_BYTES = 64 << 20
CROWDED_BYTES = 1 << 30  # of others on the GPU: then out of memory is their doing, too

# What a trainer calls the reason for refusing a file, where that is no class of its own.
_REFUSALS: dict[str, CrashClass] = {
    "plan_changed": CrashClass.CONFIG,  # started with another template or tokenizer
    "overfitting": CrashClass.DATA_ERROR,  # set aside by the ladder: the file teaches no more
    "forgetting": CrashClass.DATA_ERROR,
    "divergence": CrashClass.NAN,
}

_ACTIONS: dict[CrashClass, tuple[Action, str]] = {
    CrashClass.CUDA_OOM: (
        Action.SMALLER_MICRO_BATCH,
        "half the micro-batch is tried next; the updates stay the same",
    ),
    CrashClass.HOST_OOM: (
        Action.WAIT_FOR_MEMORY,
        "free memory on this machine; training goes on when there is room",
    ),
    CrashClass.CUDA_STICKY: (Action.NEW_PROCESS, "a new process gets a new GPU context"),
    CrashClass.GPU_HARDWARE: (
        Action.PAUSE,
        "look at nvidia-smi and the kernel log; resume when the card is well",
    ),
    CrashClass.DISK_FULL: (Action.PAUSE, "free disk space; training resumes by itself"),
    CrashClass.IO_ERROR: (Action.PAUSE, "check the disk (dmesg, smartctl) before you resume"),
    CrashClass.READ_ONLY: (Action.PAUSE, "the filesystem is read-only: remount it, then resume"),
    CrashClass.NAN: (
        Action.PREVIOUS_CHECKPOINT,
        "lower learning_rate, or look at the rows of this file",
    ),
    CrashClass.DATA_ERROR: (Action.PARK_FILE, "trainer-tui validate FILE says which rows"),
    CrashClass.CHECKPOINT_CORRUPT: (
        Action.PREVIOUS_CHECKPOINT,
        "if no checkpoint verifies: trainer-tui versions restore vNNN",
    ),
    CrashClass.CONFIG: (Action.PAUSE, "correct config.toml, then: trainer-tui resume"),
    CrashClass.CODE_BUG: (Action.NEW_PROCESS, "please report it with the incident's folder"),
    CrashClass.HANG: (Action.NEW_PROCESS, "the incident holds two stack dumps of the hung process"),
    CrashClass.KILLED_BY_USER: (Action.NEW_PROCESS, "somebody ended the trainer by a signal"),
    CrashClass.UNKNOWN: (Action.NEW_PROCESS, "trainer-tui logs trainer"),
}

_STICKY = (
    "device-side assert",
    "an illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
)
# Only words of complaint: NCCL's ordinary chatter names NVLink too.
_HARDWARE = (
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "GPU is lost",
    "fallen off the bus",
    "NVRM: Xid",
)
_MAY_BE_THE_GPU = (
    CrashClass.CUDA_STICKY,
    CrashClass.CODE_BUG,
    CrashClass.UNKNOWN,
    CrashClass.HANG,
    CrashClass.GPU_HARDWARE,
)
_CUDA_OOM = ("CUDA out of memory", "torch.OutOfMemoryError", "CUDA error: out of memory")


def classify(evidence: Evidence) -> Finding:
    """The first rung of the ladder that holds decides."""
    found, text = _with_the_drivers_word(evidence, *_ladder(evidence))
    action, suggestion = _ACTIONS[found]
    foreign = evidence.foreign_gpu_bytes or 0
    if found is CrashClass.CUDA_OOM and foreign >= CROWDED_BYTES:
        action = Action.WAIT_FOR_MEMORY
        suggestion = f"others hold {foreign / 1e9:.1f} GB of the GPU; training waits for them"
    return Finding(found, action, text, suggestion, permanent=found is CrashClass.DATA_ERROR)


def named_class(name: str) -> CrashClass | None:
    """The class of a name in `error.json`, `Failed` or `JobRefused`; None: it names none.

    "skipped" names none: a person's wish is no error.
    """
    if name in _REFUSALS:
        return _REFUSALS[name]
    return CrashClass(name) if name in {str(known) for known in CrashClass} else None


def advice(name: str) -> str:
    """What a person may do about an error that is named so; empty when there is nothing to say."""
    found = named_class(name)
    return _ACTIONS[found][1] if found is not None else ""


def _ladder(evidence: Evidence) -> tuple[CrashClass, str]:
    if evidence.ended_by_us == "hang":
        return CrashClass.HANG, "it made no progress and was ended"
    if evidence.ended_by_us == "stop":
        return CrashClass.KILLED_BY_USER, "it was ended by request"
    if evidence.oom_kills and evidence.exit_code == -signal.SIGKILL:
        return CrashClass.HOST_OOM, "the kernel ended it: no memory left (its OOM counter rose)"
    if evidence.reported is not None:
        return _from_report(evidence, evidence.reported)
    by_text = _from_text(evidence.fault_text)
    if by_text is not None:
        return by_text
    if evidence.disk_free_bytes is not None and evidence.disk_free_bytes < DISK_FULL_BYTES:
        return CrashClass.DISK_FULL, "it ended while the disk was full"
    return _from_exit(evidence.exit_code)


def _with_the_drivers_word(
    evidence: Evidence, found: CrashClass, text: str
) -> tuple[CrashClass, str]:
    """What NVML and the driver say is stronger than a program's guess at it, and weaker than
    what has nothing to do with the card."""
    if found not in _MAY_BE_THE_GPU:
        return found, text
    broken = next((xid for xid in evidence.xids if xid.of_the_card), None)
    if broken is not None:
        return CrashClass.GPU_HARDWARE, f"{broken.text} ({text})"
    if evidence.gpu_problem:
        return CrashClass.GPU_HARDWARE, f"the GPU is not well: {evidence.gpu_problem} ({text})"
    own = next((xid for xid in evidence.xids if xid.of_a_program), None)
    if own is not None and found is not CrashClass.GPU_HARDWARE:
        return CrashClass.CUDA_STICKY, f"{own.text} ({text})"
    return found, text


def _from_report(evidence: Evidence, reported: dict[str, Any]) -> tuple[CrashClass, str]:
    text = str(reported.get("message", "")) or "it reported no reason"
    named = named_class(str(reported.get("error_class", "")))
    if named is not None and named not in (CrashClass.CODE_BUG, CrashClass.UNKNOWN):
        return named, text
    more = _from_text(f"{text}\n{reported.get('stack', '')}")
    return more or (CrashClass.CODE_BUG, text)


def _from_text(text: str) -> tuple[CrashClass, str] | None:
    """What PyTorch, CUDA and the C library say of themselves."""
    rules: tuple[tuple[CrashClass, tuple[str, ...]], ...] = (
        (CrashClass.GPU_HARDWARE, _HARDWARE),
        (CrashClass.CUDA_STICKY, _STICKY),
        (CrashClass.CUDA_OOM, _CUDA_OOM),
        (CrashClass.DISK_FULL, ("No space left on device", "Disk quota exceeded")),
        (CrashClass.READ_ONLY, ("Read-only file system",)),
        (CrashClass.IO_ERROR, ("Input/output error",)),
    )
    for found, signs in rules:
        for sign in signs:
            if sign in text:
                return found, _line_with(text, sign)
    return None


def _line_with(text: str, sign: str) -> str:
    return next(line for line in text.splitlines() if sign in line).strip()[:300]


def _from_exit(code: int | None) -> tuple[CrashClass, str]:
    if code is None:
        return CrashClass.UNKNOWN, "it is gone and left no word"
    if code < 0:
        name = _signal_name(-code)
        if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return CrashClass.KILLED_BY_USER, f"it was ended by {name}"
        if -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE):
            return CrashClass.CODE_BUG, f"it crashed with {name}"
        return CrashClass.UNKNOWN, f"it was ended by {name}; no counter says why"
    return CrashClass.UNKNOWN, f"it exited with {code} and left no word"


def _signal_name(number: int) -> str:
    """Real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def oom_kill_count(memory_events: Path | None = None) -> int:
    """Processes the kernel's OOM killer has ended so far: in our cgroup, else on the machine.

    Sources: cgroup v2 `memory.events` (oom_kill), else `/proc/vmstat` (oom_kill). 0 when neither
    can be read.
    """
    for path in (memory_events or _own_memory_events(), Path("/proc/vmstat")):
        try:
            lines = path.read_text().splitlines() if path else []
        except OSError:
            continue
        for line in lines:
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


def _own_memory_events() -> Path | None:
    folder = cgroup.folder_of()
    return folder / "memory.events" if folder is not None else None


def read_report(path: Path) -> dict[str, Any] | None:
    """The child's `error.json`, or None: none there, or it died while writing."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return found if isinstance(found, dict) else None
