"""Lines of the inspector and of pages: a name with a value, and text broken to a width."""

from __future__ import annotations

from trainer_tui.safety.text import printable
from trainer_tui.tui.ink import Line

NAME_CELLS = 11


def fact(name: str, value: str, role: str = "") -> Line:
    return Line().add(f" {name:<{NAME_CELLS}}", "dim").add(value, role)


def wrapped(text: str, width: int, role: str = "", indent: str = " ") -> list[Line]:
    """`text` in lines of at most `width` cells, broken at blanks; a word too long for a line is
    broken where it must be."""
    lines: list[Line] = []
    room = max(4, width - len(indent))
    for paragraph in text.splitlines() or [""]:
        current = indent
        for whole in printable(paragraph).split():
            for word in [whole[at : at + room] for at in range(0, len(whole), room)]:
                if len(current) + len(word) + 1 > width and current.strip():
                    lines.append(Line().add(current, role))
                    current = indent
                current += (" " if current.strip() else "") + word
        lines.append(Line().add(current, role))
    return lines


def fact_wrapped(name: str, value: str, width: int, role: str = "") -> list[Line]:
    """A fact whose value may take several lines, each below the first."""
    rest = wrapped(value, max(8, width - NAME_CELLS - 1), role, "")
    first, *more = rest
    lines = [Line().add(f" {name:<{NAME_CELLS}}", "dim")]
    lines[0].spans += first.spans
    lines[0].width += first.width
    for line in more:
        under = Line().add(" " * (NAME_CELLS + 1))
        under.spans += line.spans
        under.width += line.width
        lines.append(under)
    return lines
