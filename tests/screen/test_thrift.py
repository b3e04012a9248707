"""What is written to the terminal: the same picture as Textual's own update, in fewer bytes."""

from __future__ import annotations

import re
from typing import Any

from screen_rest import at_rest
from textual._compositor import ChopsUpdate

from trainer_tui.tui.canvas import changes
from trainer_tui.tui.thrift import ThriftyUpdate

_PART = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([^\x1b])", re.DOTALL)


class Grid:
    """A terminal that knows cursor positions, SGR and characters one or two cells wide."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, tuple[str, ...]]] = {}
        self.x = self.y = 0
        self.pen: tuple[str, ...] = ()

    def feed(self, text: str) -> Grid:
        for match in _PART.finditer(text):
            codes, kind, char = match.groups()
            if char is not None:
                self._put(char)
            elif kind == "H":
                row, column = (codes or "1;1").split(";")
                self.y, self.x = int(row) - 1, int(column) - 1
            elif kind == "m":
                self._colour(codes)
        return self

    def _put(self, char: str) -> None:
        if char == "\n":
            self.y += 1
            return
        visible = self.pen if char != " " else tuple(c for c in self.pen if c.startswith("b"))
        self.cells[self.y, self.x] = (char, visible)
        self.x += 1

    def _colour(self, codes: str) -> None:
        parts = codes.split(";") if codes else ["0"]
        index = 0
        while index < len(parts):
            code = parts[index]
            if code == "0" or code == "":
                self.pen = ()
            elif code in ("38", "48"):
                length = 5 if parts[index + 1] == "2" else 3
                name = "f" if code == "38" else "b"
                value = name + ";".join(parts[index + 1 : index + length])
                self.pen = (*(c for c in self.pen if not c.startswith(name)), value)
                index += length - 1
            elif code in ("39", "49"):
                name = "f" if code == "39" else "b"
                self.pen = tuple(c for c in self.pen if not c.startswith(name))
            else:
                self.pen = (*self.pen, code)
            index += 1
        self.pen = tuple(sorted(self.pen))


async def test_the_thrifty_update_paints_the_same_picture(server: Any, stage: Any) -> None:
    async with stage(server, size=(120, 40)) as on:
        app = on.app
        app.console._color_system = app.console._color_system or 3
        theirs, ours = Grid(), Grid()
        bytes_theirs = bytes_ours = count = 0
        display = app._display

        def compare(screen: Any, renderable: Any) -> None:
            nonlocal bytes_theirs, bytes_ours, count
            if type(renderable) is ChopsUpdate:
                plain = renderable.render_segments(app.console)
                thrifty = ThriftyUpdate.of(renderable).render_segments(app.console)
                theirs.feed(plain)
                ours.feed(thrifty)
                bytes_theirs += len(plain)
                bytes_ours += len(thrifty)
                count += 1
            display(screen, renderable)

        await at_rest(app, on.pilot)  # the first painting is whole for both and says nothing
        app._display = compare
        for key in ("j", "j", "1", "2", "k", "3", "j", "2", "J", "K"):
            await on.pilot.press(key)
        for _ in range(3):
            before = count
            server.state.one_step()
            server.state.told()
            await on.until(lambda before=before: count > before, "the step is painted")
        server.state.said("warning", "gradient", "gradient spike 漢字 4.1")
        await on.until(lambda: "spike" in on.text("events"), "the event")
        await on.pilot.pause(1.2)
        app._display = display
    assert count >= 8
    differing = {
        place: (theirs.cells[place], cell)
        for place, cell in ours.cells.items()
        if theirs.cells.get(place) != cell
    }
    assert not differing
    assert bytes_ours < 0.85 * bytes_theirs  # a busy machine paints fewer, larger ones


def test_only_changed_cells_are_named() -> None:
    before = (("step ", "dim"), ("18 420", ""), (" " * 20, ""), ("ok", "good"))
    after = (("step ", "dim"), ("18 421", ""), (" " * 20, ""), ("no", "bad"))
    assert changes(before, after) == [(10, 11), (31, 33)]
    assert changes(before, before) == []
    assert changes((("a ", "x"),), (("a ", "y"),)) == [(0, 1)], "a blank has no colour"
    assert changes((("漢字", ""),), (("漢宇", ""),)) == [(2, 4)], "both halves of a wide character"
