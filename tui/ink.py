"""Rows of text with roles, and the palettes that turn roles into colours.

Invariant: a row handed to the canvas is exactly as wide as asked, whatever text went into it.
Text from outside goes through `safety.text.printable` before it comes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from rich.cells import cell_len, set_cell_size
from rich.style import Style

Span = tuple[str, str]
Row = tuple[Span, ...]

DARK: dict[str, str] = {
    "dim": "#8b93a3", "faint": "#4d5566", "frame": "#3d4555", "focus": "#7aa8d8",
    "title": "bold", "key": "bold #9cc4ea", "good": "#87c995", "warn": "#e5b567",
    "bad": "#ec7a78", "train": "#79b8f2", "raw": "#34557a", "val": "#efab6c", "mark": "#a78bd0",
    "high": "bold #efab6c", "low": "#8b93a3", "bar": "#79b8f2", "off": "#343c4b",
    "strong": "bold", "select": "on #232b3a", "lost": "#5c6473", "old": "#6f9a7b",
    "compare": "#8b93a3", "insert": "bold #efab6c", "badge": "bold #79b8f2",
}  # fmt: skip
LIGHT: dict[str, str] = {
    "dim": "#636b78", "faint": "#a8afba", "frame": "#c2c8d2", "focus": "#1d5fa8",
    "title": "bold", "key": "bold #1d5fa8", "good": "#2b7a3b", "warn": "#9a5b00",
    "bad": "#b3261e", "train": "#1767ab", "raw": "#a9c6e2", "val": "#b55a0a", "mark": "#6b4aa0",
    "high": "bold #b55a0a", "low": "#636b78", "bar": "#1767ab", "off": "#d6dbe3",
    "strong": "bold", "select": "on #e4ebf5", "lost": "#a0a7b3", "old": "#5b8a67",
    "compare": "#636b78", "insert": "bold #b55a0a", "badge": "bold #1767ab",
}  # fmt: skip
SIXTEEN: dict[str, str] = {
    "dim": "white", "faint": "bright_black", "frame": "bright_black", "focus": "cyan",
    "title": "bold", "key": "bold cyan", "good": "green", "warn": "yellow", "bad": "red",
    "train": "cyan", "raw": "blue", "val": "yellow", "mark": "magenta", "high": "bold yellow",
    "low": "white", "bar": "cyan", "off": "bright_black", "strong": "bold", "select": "reverse",
    "lost": "bright_black", "old": "green", "compare": "white", "insert": "bold yellow",
    "badge": "bold cyan",
}  # fmt: skip
# Without colour, what colour said is said by weight; words and glyphs carry the meaning anyway.
MONO: dict[str, str] = {
    "title": "bold", "key": "bold", "warn": "bold", "bad": "bold", "high": "bold",
    "strong": "bold", "select": "reverse", "insert": "bold", "focus": "bold", "badge": "bold",
}  # fmt: skip
PALETTES = {"dark": DARK, "light": LIGHT, "ansi": SIXTEEN, "mono": MONO}


@lru_cache(maxsize=512)
def style_of(role: str, palette: str) -> Style:
    """The style of a role; `a+b` lays b over a. An unknown role is the terminal's own colour."""
    colours = PALETTES[palette]
    style = Style()
    for part in role.split("+"):
        style += Style.parse(colours.get(part, ""))
    return style


@dataclass(slots=True)
class Line:
    """A row being written, left to right."""

    spans: list[Span] = field(default_factory=list)
    width: int = 0

    def add(self, text: str, role: str = "") -> Line:
        if text:
            self.spans.append((text, role))
            self.width += cell_len(text)
        return self

    def cell(self, text: str, width: int, role: str = "", right: bool = False) -> Line:
        """`text` in a column of `width` cells, cut or padded."""
        return self.add(fit_text(text, width, right), role)

    def to(self, column: int, filler: str = " ", role: str = "") -> Line:
        """Fill up to `column`; nothing when the row is there already."""
        return self.add(filler * max(0, column - self.width), role)

    def row(self, width: int) -> Row:
        return fit(tuple(self.spans), width)


def fit_text(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` cells; an ellipsis where it was cut."""
    if width <= 0:
        return ""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - length) + text if right else text + " " * (width - length)


def width_of(row: Row) -> int:
    return sum(cell_len(text) for text, _ in row)


def fit(row: Row, width: int) -> Row:
    """`row` cut or padded to exactly `width` cells."""
    out: list[Span] = []
    left = width
    for text, role in row:
        if left <= 0:
            break
        length = cell_len(text)
        if length > left:
            text, length = set_cell_size(text, left), left
        out.append((text, role))
        left -= length
    if left > 0:
        out.append((" " * left, ""))
    return tuple(out)


def cut(row: Row, width: int) -> Row:
    """As `fit`, with an ellipsis where text was lost."""
    if width <= 0 or width_of(row) <= width:
        return fit(row, width)
    shorter = fit(row, width - 1)
    return (*shorter, ("…", shorter[-1][1] if shorter else ""))


def both(left: Line, right: Line, width: int) -> Row:
    """Left and right aligned in one row; the right end wins when they meet."""
    room = max(0, width - right.width)
    return fit(left.row(room) + tuple(right.spans), width)


def over(row: Row, role: str) -> Row:
    """`row` with a role laid over all of it, such as `select`."""
    return tuple((text, f"{old}+{role}" if old else role) for text, old in row)


def plain_text(rows: list[Row]) -> str:
    """Rows as text, for logs, tests and copying."""
    return "\n".join("".join(text for text, _ in row).rstrip() for row in rows)


BLANK: Row = ()
