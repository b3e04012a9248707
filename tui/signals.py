"""Escape sequences that reach beyond the screen: title, notifications, clipboard. Pure.

Notifications: OSC 9 (iTerm2, WezTerm, kitty, Ghostty, Windows Terminal) or OSC 777 (foot, urxvt,
VTE); elsewhere the bell, which every terminal has. tmux and screen pass them on when wrapped
(tmux: `set -g allow-passthrough on`). OSC 9;4 is never sent: older iTerm2 shows it as text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from trainer_tui.safety.text import printable

SAVE_TITLE = "\x1b[22;2t"
RESTORE_TITLE = "\x1b[23;2t"
BELL = "\x07"
_OSC_9 = ("iTerm.app", "WezTerm", "ghostty", "kitty")


def wrapped(sequence: str, environment: Mapping[str, str]) -> str:
    """`sequence` so that a multiplexer passes it on to the terminal around it."""
    if environment.get("TMUX"):
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if environment.get("TERM", "").startswith("screen"):
        return f"\x1bP{sequence}\x1b\\"
    return sequence


def osc52(text: str, environment: Mapping[str, str]) -> str:
    """Puts `text` on the clipboard of the reader's terminal, also over SSH.

    In tmux twice: bare, which it takes with `set-clipboard on`, and wrapped, which it passes on
    with `allow-passthrough on`; what it does not take it drops.
    """
    packed = base64.b64encode(text.encode()).decode()
    bare = f"\x1b]52;c;{packed}\x07"
    outside = wrapped(bare, environment)
    return bare + outside if environment.get("TMUX") else outside


def title(text: str) -> str:
    """Names the window; tmux takes it for the pane."""
    return f"\x1b]2;{printable(text, 80)}\x07"


def notification(text: str, environment: Mapping[str, str]) -> str:
    """Calls the reader, who is looking at another window."""
    words = printable(text, 120).replace(";", ",")
    program = environment.get("TERM_PROGRAM", "") or environment.get("LC_TERMINAL", "")
    term = environment.get("TERM", "")
    if program in _OSC_9 or "kitty" in term or "ghostty" in term or environment.get("WT_SESSION"):
        return wrapped(f"\x1b]9;{words}\x07", environment) + BELL
    if term.startswith(("foot", "rxvt")) or environment.get("VTE_VERSION"):
        return wrapped(f"\x1b]777;notify;trainer-tui;{words}\x07", environment) + BELL
    return BELL
