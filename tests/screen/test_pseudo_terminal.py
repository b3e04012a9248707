"""What goes to the terminal, byte by byte: mouse modes, colours by terminal, the background asked.

A screen process on a pseudo-terminal of its own, which answers what the screen asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "budget"))
from measure import START, Terminal

SGR = re.compile(rb"\x1b\[([0-9;]*)m")
DARK, LIGHT = b"rgb:1616/1a1a/2222", b"rgb:fdfd/fdfd/fbfb"


@contextmanager
def screen(server: Any, root: Path, background: bytes = DARK, **more: str) -> Iterator[bytes]:
    """All that a screen writes from its start until it was left."""
    (root / "state").mkdir(exist_ok=True)
    command = [sys.executable, "-c", START, str(root), str(server.path)]
    terminal = Terminal(command, 80, 24, root, background=background, environment=more)
    try:
        terminal.read(30, until=b"refunds.jsonl")
        terminal.read(0.6)
        yield terminal.output
    finally:
        terminal.close()


def colours(output: bytes) -> set[str]:
    """The SGR parameters that name a colour."""
    found = set()
    for match in SGR.finditer(output):
        found |= {c for c in re.findall(r"[345]8;[25];[\d;]+?\b(?=;|$)|\b[349]\d\b|\b10[0-7]\b",
                                        match[1].decode())}  # fmt: skip
    return found - {"39", "49"}


def test_any_motion_is_off_from_the_start_and_the_background_was_asked(
    server: Any, tmp_path: Path
) -> None:
    with screen(server, tmp_path) as output:
        assert output.rindex(b"\x1b[?1003l\x1b[?1002h") > output.rindex(b"\x1b[?1003h")
        assert b"\x1b]11;?" in output
        assert b"38;2;" in output, "true colour where the terminal says so"


async def test_any_motion_is_off_after_a_resume_too(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        written: list[str] = []
        on.app.to_terminal = written.append
        on.app.app_resume_signal.publish(on.app)
        await on.until(lambda: "\x1b[?1003l\x1b[?1002h" in written, "said again")
        await on.press("m")
        written.clear()
        on.app.app_resume_signal.publish(on.app)
        await on.until(lambda: written, "said again")
        assert "1002h" not in written[0], "off stays off"


def test_a_light_terminal_gets_other_colours(server: Any, tmp_path: Path) -> None:
    with screen(server, tmp_path) as output:
        dark = output
    with screen(server, tmp_path, background=LIGHT) as output:
        assert colours(output) and colours(output) != colours(dark)


@pytest.mark.parametrize(
    ("more", "absent"),
    [
        ({"NO_COLOR": "1"}, rb"\x1b\[[0-9;]*(?:[34]8;[25];|\b3[0-7]\b|\b4[0-7]\b|\b9[0-7]\b)"),
        ({"TERM": "linux", "COLORTERM": ""}, rb"\x1b\[[0-9;]*[34]8;[25];"),
    ],
    ids=["no-colour", "sixteen-colours"],
)
def test_a_poor_terminal_gets_no_colour_it_lacks(
    server: Any, tmp_path: Path, more: dict[str, str], absent: bytes
) -> None:
    with screen(server, tmp_path, **more) as output:
        assert re.findall(absent, output) == []
        assert SGR.search(output), "bold and reverse are left"


def test_where_braille_cannot_be_shown_all_is_ascii(server: Any, tmp_path: Path) -> None:
    with screen(server, tmp_path, TRAINER_TUI_ASCII="1") as output:
        text = re.sub(rb"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)", b"", output)  # titles
        assert [chr(byte) for byte in text if byte > 126] == []
