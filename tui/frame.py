"""The frame of a panel: a number and a name on the left, what matters on the right."""

from __future__ import annotations

from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, fit


def framed(
    rows: list[Row],
    *,
    number: int,
    name: str,
    right: Line | None,
    width: int,
    height: int,
    focused: bool,
    glyphs: Glyphs,
) -> list[Row]:
    """`rows` inside a border, exactly `height` rows of `width` cells."""
    if height < 2 or width < 4:
        return [fit(row, width) for row in rows[:height]]
    edge = "focus" if focused else "frame"
    top_left, top_right, low_left, low_right = tuple(glyphs.corners)
    top = Line().add(f"{top_left}{glyphs.across} ", edge)
    top.add(f"{number} " if number else "", "key" if focused else "dim")
    top.add(f"{name} ", "title" if focused else "strong")
    if right is not None and right.width and top.width + right.width + 6 <= width:
        top.to(width - right.width - 4, glyphs.across, edge).add(" ", edge)
        top.spans += right.spans
        top.width += right.width
        top.add(" ", edge)
    top.to(width - 1, glyphs.across, edge).add(top_right, edge)
    out = [fit(tuple(top.spans), width)]
    side = (glyphs.upright, edge)
    for index in range(height - 2):
        inner = rows[index] if index < len(rows) else ()
        out.append((side, *fit(inner, width - 2), side))
    out.append(((low_left + glyphs.across * (width - 2) + low_right, edge),))
    return out
