"""On a real terminal: tmux with real keys, the first questions to the terminal, the way out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_tui.tui import terminal
from trainer_tui.tui.control import looks_pasted

START = (
    "import sys; from pathlib import Path; from trainer_tui.tui.app import run;"
    "sys.exit(run(Path(sys.argv[1]), socket=Path(sys.argv[2])))"
)


class Tmux:
    """One window of a tmux server of its own."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self._socket = folder / "tmux.sock"
        self._run("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", *command)
        self._run("set-option", "-g", "remain-on-exit", "on")

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout

    def screen(self) -> str:
        """With what scrolled off: tmux writes that the program ended below its last words."""
        return self._run("capture-pane", "-p", "-S", "-")

    def keys(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def raw(self, text: str) -> None:
        self._run("send-keys", "-l", text)

    def paste(self, text: str, bracketed: bool) -> None:
        self._run("set-buffer", text)
        self._run("paste-buffer", *(["-p"] if bracketed else []))

    def set_clipboard(self) -> None:
        self._run("set-option", "-s", "set-clipboard", "on")

    def until_copied(self) -> str:
        """What the program inside put on the clipboard."""
        end_s = time.monotonic() + 30
        while not (found := self._run("show-buffer")):
            assert time.monotonic() < end_s, "nothing was copied"
            time.sleep(0.05)
        return found

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def until(self, true: Callable[[str], bool], what: str) -> str:
        end_s = time.monotonic() + 40
        while not true(screen := self.screen()):
            assert time.monotonic() < end_s, f"never: {what}\n{screen}"
            time.sleep(0.05)
        return screen

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def tmux(tmp_path: Path, server: Any) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    (tmp_path / "state").mkdir()
    found = Tmux(tmp_path, [sys.executable, "-c", START, str(tmp_path), str(server.path)])
    yield found
    found.close()


def test_real_keys_mouse_and_paste_in_tmux(tmux: Tmux, server: Any) -> None:
    state = server.state
    tmux.until(lambda s: "TRAINING" in s and "refunds.jsonl" in s and "⠉" in s, "the first screen")
    tmux.keys("J")
    tmux.until(lambda s: "#34 normal, place 2" in s, "moved by key")
    # Press on #32 (row 15 of the screen), drag to row 18, release: SGR mouse, button motion.
    tmux.raw("\x1b[<0;6;15M\x1b[<32;6;16M\x1b[<32;6;17M\x1b[<32;6;18M")
    tmux.until(lambda s: "━━ #32 tone.jsonl ━━" in s, "the insertion mark")
    tmux.raw("\x1b[<0;6;18m")
    tmux.until(lambda s: "#32 low" in s or "#32 normal, place" in s, "dropped")
    tmux.set_clipboard()
    tmux.keys("y")
    tmux.until(lambda s: "copied #" in s, "copied")
    assert tmux.until_copied().startswith("#"), "tmux has it by OSC 52"
    count = len(state.requests)
    tmux.paste("pxsRyJKTBcuq+-", bracketed=True)
    tmux.until(lambda s: "pasted text is ignored" in s, "a paste")
    tmux.paste("pxsRyJKTBcuq+-", bracketed=False)
    tmux.until(lambda s: "look like pasted text" in s, "a paste without brackets")
    assert len(state.requests) == count
    for columns, rows in ((40, 10), (200, 50), (61, 16), (120, 40), (80, 24)):
        tmux.resize(columns, rows)
    tmux.until(lambda s: "drag ⠿ or J/K" in s and "q Detach" in s, "drawn again after resizes")
    tmux.keys("q")
    screen = tmux.until(lambda s: "detached; training goes on" in s, "the exit line")
    assert "Traceback" not in screen
    assert (server.path.parent / "state" / "screen.json").exists()


@pytest.mark.parametrize(
    ("answer", "light"),
    [
        (b"\x1b]11;rgb:1e1e/1e1e/2e2e\x1b\\\x1b[?62;22c", False),
        (b"\x1b]11;rgb:ffff/fafa/f0f0\x07\x1b[?1;2c", True),
        (b"\x1b]11;rgb:ff/fa/f0\x07", True),
        (b"\x1b[?1;2c", None),
        (b"", None),
    ],
)
def test_the_background_is_read_from_osc_11(answer: bytes, light: bool | None) -> None:
    assert terminal.is_light(answer) is light


def test_palettes_by_terminal() -> None:
    assert terminal.palette("trainer", None, {"NO_COLOR": "1"}) == "mono"
    assert terminal.palette("trainer", True, {"TERM": "xterm-256color"}) == "light"
    assert terminal.palette("trainer", None, {"COLORFGBG": "0;15"}) == "light"
    assert terminal.palette("trainer", None, {"TERM": "linux"}) == "ansi"
    assert terminal.palette("light", False, {}) == "light"


def test_pasted_text_is_told_from_fingers() -> None:
    assert looks_pasted(list("import os"))
    assert not looks_pasted(["J"] * 40)
    assert not looks_pasted(list("jjJ+"))
