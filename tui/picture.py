"""The screen or its chart as a picture, as it stands: for reports, for the README.

SVG needs nothing else. PNG is made from it by cairosvg, which is an optional dependency
(`pip install 'trainer-tui[png]'`): without it the SVG is there and the reply says what is missing.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme

from trainer_tui.tui.ink import Row, style_of

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

_ANSI = [
    (26, 30, 39), (236, 122, 120), (135, 201, 149), (229, 181, 103),
    (121, 184, 242), (167, 139, 208), (110, 190, 200), (205, 211, 222),
]  # fmt: skip
NIGHT = TerminalTheme((22, 26, 34), (213, 218, 227), _ANSI, _ANSI)
DAY = TerminalTheme((253, 253, 251), (38, 43, 52), _ANSI, _ANSI)
TITLE = "trainer-tui"
PNG_SCALE = 1.5
# cairosvg fetches no font and knows no `textLength`: the cells of a run are made as wide as Rich
# assumes (0.61 of 20 px) by the size of a font that is 0.602 as wide as high.
BRAILLE = 0x2800
CELL_WIDTH, LINE_HEIGHT, ASCENT = 12.2, 24.4, 18.5  # as Rich lays the cells out
_DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # by bit: right, down
_TEXT = re.compile(r'<text class="([^"]+)" x="([\d.]+)" y="([\d.]+)"([^>]*)>([^<]*)</text>')
_FONT = (
    ("font-family: Fira Code, monospace", "font-family: monospace"),
    ("font-size: 20px", "font-size: 20.27px"),
)


def _console(width: int, height: int) -> Console:
    return Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", record=True, legacy_windows=False, safe_box=False,
    )  # fmt: skip


def svg(app: TrainerApp) -> str:
    """What the terminal shows now, as SVG text."""
    console = _console(*app.size)
    console.print(
        app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    )
    return console.export_svg(title=TITLE, theme=_theme(app))


def chart_svg(app: TrainerApp) -> str:
    """The loss panel alone, as SVG text."""
    width, height = app.loss.size
    console = _console(max(width, 20), max(height, 4))
    for row in app.loss.draw(max(width, 20), max(height, 4)):
        console.print(_Cells(row, app.palette), end="\n", no_wrap=True, overflow="crop")
    return console.export_svg(title=TITLE, theme=_theme(app))


class _Cells:
    """A row as Rich prints it."""

    def __init__(self, row: Row, palette: str) -> None:
        self._segments = [Segment(text, style_of(role, palette)) for text, role in row]

    def __rich_console__(self, console: object, options: object) -> list[Segment]:
        return self._segments


def _theme(app: TrainerApp) -> TerminalTheme:
    return DAY if app.palette == "light" else NIGHT


def save_picture(text: str, folder: Path, name: str = "trainer-tui") -> tuple[list[Path], str]:
    """Write `<name>-<n>.svg` into `folder`, and the PNG beside it when it can be made.

    Returns:
        (the files written, why there is no PNG or "").
    """
    number = 1
    while (path := folder / f"{name}-{number}.svg").exists():
        number += 1
    path.write_text(text, encoding="utf-8")
    try:
        data = png(text)
    except ImportError:
        return [path], "for PNG: pip install 'trainer-tui[png]'"
    except OSError as problem:  # cairosvg is there, the cairo library is not
        return [path], f"no PNG: {str(problem).splitlines()[0]}"
    picture = path.with_suffix(".png")
    picture.write_bytes(data)
    return [path, picture], ""


def _with_dots(found: re.Match[str]) -> str:
    """A run of text whose braille is drawn as circles: few fonts have it, none in the cell's
    width."""
    role, x, y, rest, content = found.groups()
    characters = html.unescape(content)
    dots, column, plain = [], 0, ""
    for char in characters:
        code = ord(char) - BRAILLE
        inside = 0 <= code < 256
        if inside:
            left, top = float(x) + column * CELL_WIDTH, float(y) - ASCENT
            dots += [
                f'<circle class="{role}" cx="{left + CELL_WIDTH * (0.27 + 0.46 * right):.1f}"'
                f' cy="{top + LINE_HEIGHT * (0.125 + 0.25 * down):.1f}" r="1.7"/>'
                for bit, (right, down) in enumerate(_DOTS)
                if code >> bit & 1
            ]
        plain += " " if inside else char
        column += cell_len(char)
    if not dots:
        return found[0]
    shown = html.escape(plain).replace(" ", "&#160;")
    return f'<text class="{role}" x="{x}" y="{y}"{rest}>{shown}</text>{"".join(dots)}'


def png(text: str) -> bytes:
    """SVG text as a PNG. Raises ImportError, OSError: what it needs is not installed."""
    import cairosvg

    for old, new in _FONT:
        text = text.replace(old, new)
    text = _TEXT.sub(_with_dots, text)
    made: bytes = cairosvg.svg2png(bytestring=text.encode(), scale=PNG_SCALE)
    return made
