"""What the numbered panels share: a frame, focus, a selection that follows its item."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual import events

from trainer_tui.safety import clock
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.frame import framed
from trainer_tui.tui.ink import Line, Row

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


class FramedPanel(Canvas, can_focus=True):
    """A numbered panel. Subclasses give `inner` and, if they like, `corner`."""

    number = 0
    title_text = ""

    @property
    def screen_app(self) -> TrainerApp:
        return cast("TrainerApp", self.app)

    def inner(self, width: int, height: int) -> list[Row]:
        raise NotImplementedError

    def corner(self, width: int) -> Line | None:
        """What stands at the right end of the title."""
        return None

    def draw(self, width: int, height: int) -> list[Row]:
        return framed(
            self.inner(width - 2, height - 2),
            number=self.number,
            name=self.title_text,
            right=self.corner(width),
            width=width,
            height=height,
            focused=self.has_focus,
            glyphs=self.glyphs,
        )

    def step(self, rows: int) -> None:
        """Move the selection or the view by `rows`."""

    def ends(self, last: bool) -> None:
        """Go to the first or the last."""

    def find(self, text: str) -> None:
        """Show only what contains `text`; empty shows all."""

    @property
    def found(self) -> str:
        """The text of the filter."""
        return ""

    def copy_text(self) -> str:
        """What `y` copies."""
        return ""


class ListPanel(FramedPanel):
    """Rows of which one is selected; the selection sticks to its item when the order changes."""

    sticky = True  # holds on to what it selected first; else to the first until one is chosen

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._key: object = None
        self._chosen_s = 0.0  # when somebody last chose a row; monotonic
        self._index = 0
        self._top = 0
        self._filter = ""

    def keys(self) -> list[object]:
        """The identity of every row, in the order shown (after the filter)."""
        raise NotImplementedError

    @property
    def found(self) -> str:
        return self._filter

    @property
    def selected(self) -> object:
        """The identity of the selected row; None when there is none."""
        keys = self.keys()
        return keys[self._settle(keys)] if keys else None

    def _settle(self, keys: list[object]) -> int:
        """The index of the selection, mended when its item moved or went."""
        if self._key in keys:
            self._index = keys.index(self._key)
        else:
            start = self._index if self._key is not None else self.first_choice()
            self._index = max(0, min(start, len(keys) - 1))
            if self.sticky and keys:
                self._key = keys[self._index]
        return self._index

    def left_alone(self, limit_s: float) -> bool:
        """Nobody has chosen a row for so long."""
        return clock.monotonic_s() - self._chosen_s > limit_s

    def first_choice(self) -> int:
        """The index that is selected before anyone has chosen."""
        return 0

    def select(self, key: object) -> None:
        self._key = key
        self.changed()

    def step(self, rows: int) -> None:
        keys = self.keys()
        if not keys:
            return
        index = max(0, min(self._settle(keys) + rows, len(keys) - 1))
        self._key, self._index = keys[index], index
        self.changed()

    def ends(self, last: bool) -> None:
        self.step(len(self.keys()) if last else -len(self.keys()))

    def find(self, text: str) -> None:
        self._filter = text
        self._top = 0
        if self._key not in self.keys():
            self._index = 0  # the first that matches
        self.changed()

    def changed(self) -> None:
        self._chosen_s = clock.monotonic_s()
        self.repaint()
        self.screen_app.selection_changed()

    def window(self, total: int, height: int) -> range:
        """The rows to draw so that the selection is among them."""
        self._top = max(0, min(self._top, total - height))
        if self._index < self._top:
            self._top = self._index
        elif self._index >= self._top + height:
            self._top = self._index - height + 1
        return range(self._top, min(total, self._top + height))

    def row_at(self, y: int) -> int | None:
        """The index of the item drawn at row `y` of the widget."""
        index = self._top + y - 1
        return index if 1 <= y < self.size.height - 1 and index < len(self.keys()) else None

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.focus()
        index = self.row_at(event.y)
        if index is not None:
            self._key, self._index = self.keys()[index], index
            self.changed()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.step(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.step(-1)
