"""Small records that a program keeps for itself, read so that a bad one stops nothing.

Invariant: a file that is there and cannot be used is a sentence, not an exception; a process that
has run out of something says nothing about the file, so that is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from trainer_tui.safety import clock, durable
from trainer_tui.safety.errors import is_lack

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unusable:
    """`text`: which file it is and why its content is not to be had."""

    text: str


def read(path: Path, decode: Callable[[bytes], T]) -> T | Unusable:
    """What `decode` makes of the file.

    Raises:
        FileNotFoundError: it is not there.
        OSError: this process lacks memory or descriptors.
    """
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as problem:
        if is_lack(problem):
            raise
        return Unusable(f"{path.name} cannot be read ({problem.strerror})")
    except (ValueError, RecursionError, msgspec.MsgspecError) as problem:
        return Unusable(f"{path.name} is damaged ({problem})")


def set_aside(path: Path) -> str:
    """Free the name of an unusable file or folder, and keep what had it.

    Returns:
        The end of a sentence: where it is now, or why it is still there.
    """
    aside = path.with_name(f"{path.name}.broken-{int(clock.now_s() * 1000)}")
    try:
        durable.rename(path, aside)
    except OSError as problem:
        if is_lack(problem):
            raise
        return f"; it could not be set aside ({problem.strerror})"
    return f"; it is now {aside.name}"
