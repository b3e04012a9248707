"""What a person last asked of training, kept over every restart.

Invariant: written durably before the effect. Nobody but a person, or the degraded rule, changes
it; a daemon that starts obeys what it finds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from trainer_tui.safety import clock, durable

Wish = Literal["run", "pause", "stop_after_file", "stopped", "degraded"]


class Intent(msgspec.Struct, frozen=True):
    """`release`: a pause that also ends the trainer, so that its GPU is free."""

    training: Wish = "run"
    by: str = ""
    at: str = ""
    why: str = ""
    release: bool = False


_decoder = msgspec.json.Decoder(Intent)


def load(path: Path) -> Intent:
    """The intent on disk; a missing file means `run`, a damaged one means `stopped`: what a
    person stopped must not start because a file cannot be read."""
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return Intent()
    except msgspec.MsgspecError as problem:
        return Intent("stopped", "daemon", clock.now_iso(), f"intent.json is damaged: {problem}")


def save(path: Path, intent: Intent) -> None:
    """Raises OSError: the old intent still stands."""
    durable.replace(path, msgspec.json.encode(intent))


def wish(training: Wish, by: str, why: str = "", *, release: bool = False) -> Intent:
    return Intent(training, by, clock.now_iso(), why, release)
