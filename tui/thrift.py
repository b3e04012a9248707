"""Writes only the cells that changed.

Textual 8.2's `ChopsUpdate` repaints a changed row from the left edge of its widget, and closes
and opens the colour at every segment. Over SSH that is most of what a quiet screen sends. This
takes the same chops and spans and writes exactly the spans, with one SGR where the colour
changes.

Invariant: what ends up on the terminal is what `ChopsUpdate` would have put there.
Limits: written against Textual 8.2.8 (pinned in constraints.txt); a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.control import Control
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate
from textual.strip import Strip


class ThriftyUpdate(ChopsUpdate):
    """A `ChopsUpdate` with both ends of each span cut to what changed."""

    count: Callable[[int], None] | None = None

    @classmethod
    def of(cls, update: ChopsUpdate, count: Callable[[int], None] | None = None) -> ThriftyUpdate:
        """The same update, written with thrift; `count` is told how many characters that were."""
        made = cls(update.chops, update.spans, update.chop_ends)
        made.count = count
        return made

    def render_segments(self, console: Console) -> str:
        out: list[str] = []
        pen = _Pen(console)
        for y, x1, x2 in self.spans:
            pen_x: int | None = None
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                start, stop = max(x, x1), min(end, x2)
                if pen_x != start:
                    out.append(Control.move_to(start, y).segment.text)
                part = strip.crop(start - x, stop - x)
                out.append(pen.write(part))
                pen_x = stop
        out.append(pen.lift())
        text = "".join(out)
        if self.count is not None:
            self.count(len(text))
        return text


class _Pen:
    """Remembers the colour that is set, so that it is written once."""

    def __init__(self, console: Console) -> None:
        self._system = console._color_system
        self._set = ""

    def write(self, strip: Strip) -> str:
        out: list[str] = []
        for segment in strip:
            text, style, control = segment
            if control or not text:
                continue
            wanted = self._codes(segment, style)
            if wanted != self._set:
                # `0;` first: the codes of the last colour may include more than the next sets.
                out.append(f"\x1b[0;{wanted}m" if wanted else "\x1b[0m")
                self._set = wanted
            out.append(text)
        return "".join(out)

    def _codes(self, segment: Segment, style: Style | None) -> str:
        if style is None or self._system is None:
            return ""
        return Strip.render_ansi(style, self._system)

    def lift(self) -> str:
        return "\x1b[0m" if self._set else ""
