"""What the terminal is like: asked once, before the screen starts, without waiting for long.

OSC 11 asks for the background colour and DA1 (which every terminal answers) marks the end, so a
terminal that does not know OSC 11 costs one round trip and not a time-out.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Mapping

ASK = "\x1b]11;?\x1b\\\x1b[c"
WAIT_S = 0.6
_COLOUR = re.compile(rb"\x1b\]11;rgb:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})")
_END = re.compile(rb"\x1b\[\?[\d;]*c")


class Answer:
    """The terminal's answer, on its way."""

    def __init__(self, thread: threading.Thread | None, found: list[bool | None]) -> None:
        self._thread = thread
        self._found = found

    def wait(self) -> bool | None:
        """Whether the background is light; None when the terminal did not say."""
        if self._thread is not None:
            self._thread.join()
        return self._found[0]


def ask_background() -> Answer:
    """Ask the terminal; `wait` on the answer later. Nothing happens without a terminal."""
    found: list[bool | None] = [None]
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or os.environ.get("TERM") in (
        "dumb",
        "linux",
    ):
        return Answer(None, found)
    thread = threading.Thread(target=_ask, args=(found,), name="ask-background", daemon=True)
    thread.start()
    return Answer(thread, found)


def _ask(found: list[bool | None]) -> None:
    fd = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(fd)
        tty.setcbreak(fd, termios.TCSANOW)
    except termios.error:
        return
    try:
        os.write(sys.stderr.fileno(), ASK.encode())
        answer, until_s = b"", time.monotonic() + WAIT_S
        while not _END.search(answer) and (left_s := until_s - time.monotonic()) > 0:
            if select.select([fd], [], [], left_s)[0]:
                answer += os.read(fd, 256)
        found[0] = is_light(answer)
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def is_light(answer: bytes) -> bool | None:
    """Whether the colour in an OSC 11 answer is light (ITU-R BT.601 luma above a half)."""
    match = _COLOUR.search(answer)
    if match is None:
        return None
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in match.groups())
    return bool(0.299 * red + 0.587 * green + 0.114 * blue > 0.5)


def palette(wanted: str, light: bool | None, environment: Mapping[str, str]) -> str:
    """The palette's name: what config.toml asks for, else what suits the terminal."""
    if environment.get("NO_COLOR"):
        return "mono"
    if wanted in ("dark", "light", "ansi", "mono"):
        return wanted
    term = environment.get("TERM", "")
    if term in ("linux", "vt220", "xterm-16color", "ansi"):
        return "ansi"
    if light is None and (hint := environment.get("COLORFGBG", "").rpartition(";")[2]):
        light = hint in ("7", "15")
    return "light" if light else "dark"
