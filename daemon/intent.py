"""What a person last asked of training, kept over every restart.

Invariant: written durably before the effect. Nobody but a person, or the degraded rule, changes
it; a daemon that starts obeys what it finds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from trainer_tui.safety import clock, durable, state_file
from trainer_tui.safety.state_file import Unusable

NOBODY = "daemon"
Wish = Literal["run", "pause", "stop_after_file", "stopped", "degraded"]


class Intent(msgspec.Struct, frozen=True):
    """`release`: a pause that also ends the trainer, so that its GPU is free."""

    training: Wish = "run"
    by: str = ""
    at: str = ""
    why: str = ""
    release: bool = False

    @property
    def is_unknown(self) -> bool:
        """It stands for one that could not be read."""
        return self.training == "stopped" and self.by == NOBODY


_decoder = msgspec.json.Decoder(Intent)


def load(path: Path) -> Intent:
    """The intent on disk; a missing file means `run`, one that cannot be used means `stopped`: what
    a person stopped must not start because a file cannot be read."""
    try:
        found = state_file.read(path, _decoder.decode)
    except FileNotFoundError:
        return Intent()
    if isinstance(found, Unusable):
        why = f"{found.text}, so what was asked of training is not known; trainer-tui resume"
        return Intent("stopped", NOBODY, clock.now_iso(), why)
    return found


def save(path: Path, intent: Intent) -> None:
    """Raises OSError: the old intent still stands."""
    if path.is_dir() and not path.is_symlink():  # no rename of a file takes a folder's name
        state_file.set_aside(path)
    durable.replace(path, msgspec.json.encode(intent))


def wish(training: Wish, by: str, why: str = "", *, release: bool = False) -> Intent:
    return Intent(training, by, clock.now_iso(), why, release)
