"""A static chart of the history, for scripts and reports: `trainer-tui plot loss val_loss`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlencode

from trainer_tui.safety.errors import Refused
from trainer_tui.tui.chart import Series, axes_for, plot
from trainer_tui.tui.glyphs import choose
from trainer_tui.tui.ink import Line, Row, plain_text, style_of

ROLES = ("train", "val", "mark", "good", "warn", "bad")


class Reader(Protocol):
    def get(self, path: str) -> dict[str, Any]: ...


def draw(client: Reader, series: Sequence[str], width: int, height: int) -> str:
    """The series over the steps, as `height` lines of text of at most `width` cells.

    Coloured when standard output is a terminal and `NO_COLOR` is not set.

    Raises:
        Refused: nothing has been measured yet, or the daemon does not know a series.
        NoDaemon: none answers.
    """
    query = urlencode({"series": ",".join(series), "points": max(20, width)})
    found = client.get(f"/v1/metrics?{query}").get("series") or {}
    curves = []
    for index, name in enumerate(series):
        values = [(p["step"], p["mean"]) for p in found.get(name, ()) if p.get("mean") is not None]
        if values:
            curves.append((name, Series(ROLES[index % len(ROLES)], tuple(values))))
    if not curves:
        raise Refused(f"nothing has been measured of {', '.join(series)}", "train a step first")
    steps = [x for _, curve in curves for x, _ in curve.points]
    axes = axes_for([curve for _, curve in curves], min(steps), max(max(steps), 1), log=False)
    glyphs = choose(encoding=sys.stdout.encoding or "ascii")
    legend = Line()
    for name, curve in curves:
        legend.add(f" {glyphs.dot} {name} ", curve.role).add(f"{curve.points[-1][1]:.4g} ")
    body = plot([curve for _, curve in curves], axes, [], width, max(3, height - 1), glyphs)
    return text([legend.row(width), *body])


def text(rows: list[Row]) -> str:
    """Rows as text, with colour where it will be seen."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return plain_text(rows)
    lines = ["".join(style_of(role, "ansi").render(part) for part, role in row) for row in rows]
    return "\n".join(lines)
