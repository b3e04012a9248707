"""When a checkpoint is due: a pure decision over steps, seconds and who waits.

A hundred tiny files are not a hundred checkpoints: completed files gather until `save_steps` or
a file's end meets `min_save_interval_s`, and are committed at once when the queue runs dry or
someone waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "save_steps",
    "file_done",
    "queue_dry",
    "pause",
    "stop",
    "skip",
    "asked",
    "restore",
    "daemon_gone",
    "nan",
    "suspect",
]


@dataclass(frozen=True, slots=True)
class SavePolicy:
    save_steps: int
    min_save_interval_s: float


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What would be lost now. `files_done`: completed files that no commit lists yet."""

    steps: int
    files_done: int
    seconds_since_commit: float


def due(policy: SavePolicy, unsaved: Unsaved, *, at_file_end: bool) -> Reason | None:
    """Why a commit is due by itself; None when it is not. Someone who waits needs no reason."""
    if unsaved.seconds_since_commit < policy.min_save_interval_s:
        return None
    if at_file_end and unsaved.files_done:
        return "file_done"
    if unsaved.steps >= policy.save_steps:
        return "save_steps"
    return None
