"""A widget that draws rows and repaints only the cells that differ from the last time.

Invariant: `_rows` is what the terminal shows for this widget. `repaint` with equal rows writes
nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from trainer_tui.tui.glyphs import UNICODE, Glyphs, plain
from trainer_tui.tui.ink import Row, fit, style_of

JOIN_CELLS = 6  # two changes closer than this are cheaper written as one


class Canvas(Widget):
    """Subclasses give `draw`; the app calls `repaint` when what they show was touched."""

    can_focus = False
    ALLOW_SELECT = False
    warns = False  # keeps its warnings bright when the daemon is lost

    def __init__(self, *, id: str, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._strips: list[Strip] = []
        self._looks = ""

    @property
    def glyphs(self) -> Glyphs:
        return getattr(self.app, "glyphs", UNICODE)

    def draw(self, width: int, height: int) -> list[Row]:
        """The rows to show, at most `height` of them, each fitted to `width`."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw again and mark the cells that changed. Free when hidden."""
        width, height = self.size
        if not width or not height or not self.is_attached:
            return
        palette: str = getattr(self.app, "palette", "dark")
        dimmed: bool = getattr(self.app, "dimmed", False)
        looks = f"{palette}/{dimmed}"
        rows = [self._finish(row, width) for row in self.draw(width, height)[:height]]
        rows += [fit((), width)] * (height - len(rows))
        if dimmed:
            rows = [self._faded(row) for row in rows]
        old, everything = self._rows, looks != self._looks or len(rows) != len(self._rows)
        self._rows, self._looks = rows, looks
        if everything:
            self._strips = [self._strip(row, palette) for row in rows]
            self.refresh()
            return
        regions: list[Region] = []
        for y, (before, after) in enumerate(zip(old, rows, strict=True)):
            if before != after:
                self._strips[y] = self._strip(after, palette)
                regions += [Region(a, y, b - a, 1) for a, b in changes(before, after)]
        if regions:
            self.refresh(*regions)

    def _faded(self, row: Row) -> Row:
        """What was known before the daemon was lost; that it is lost stays bright."""
        return tuple((t, r if self.warns and "bad" in r else f"{r}+lost") for t, r in row)

    def _finish(self, row: Row, width: int) -> Row:
        glyphs = self.glyphs
        if not glyphs.braille:
            row = tuple((plain(text, glyphs), role) for text, role in row)
        return fit(row, width)

    @staticmethod
    def _strip(row: Row, palette: str) -> Strip:
        return Strip([Segment(text, style_of(role, palette)) for text, role in row])

    def render_line(self, y: int) -> Strip:
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width)

    def _on_resize(self, event: events.Resize) -> None:
        self._rows = []
        self.repaint()

    def _on_show(self, event: events.Show) -> None:
        self.repaint()

    def _on_focus(self, event: events.Focus) -> None:
        super()._on_focus(event)
        self.repaint()

    def _on_blur(self, event: events.Blur) -> None:
        super()._on_blur(event)
        self.repaint()


def changes(before: Row, after: Row) -> list[tuple[int, int]]:
    """Column spans [a, b) in which two rows of the same width differ; close ones are joined."""
    spans: list[tuple[int, int]] = []
    for column, (old, new) in enumerate(zip(_cells(before), _cells(after), strict=False)):
        if old == new:
            continue
        if spans and column - spans[-1][1] < JOIN_CELLS:
            spans[-1] = (spans[-1][0], column + 1)
        else:
            spans.append((column, column + 1))
    return spans


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    """One entry per cell; a wide character stands in both of its cells. A blank looks the same
    in every role but a background."""
    for text, role in row:
        on_ground = "select" in role
        for char in text:
            if char == " " and not on_ground:
                yield char, ""
            elif char.isascii():
                yield char, role
            else:
                for _ in range(cell_len(char)):
                    yield char, role
