"""The last row: the keys that are worth a glance, from the table of actions. A click works too."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual import events

from trainer_tui.tui import situation as can
from trainer_tui.tui.actions import Action, footer_actions
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.ink import Line, Row

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


ALWAYS = ("help", "quit")  # however narrow: the way to every key, and the way out


class Footer(Canvas):
    """Remembers where each action stands, for the mouse."""

    def __init__(self) -> None:
        super().__init__(id="footer")
        self._places: list[tuple[int, int, Action]] = []

    def draw(self, width: int, height: int) -> list[Row]:
        app = cast("TrainerApp", self.app)
        at = app.situation()
        ranked = [a for a in footer_actions(at.focus) if not (at.read_only and a.changes)]
        texts = {action.id: (action.keys_shown, self._label(action, at)) for action in ranked}
        chosen: list[Action] = []
        used = 1
        for action in sorted(ranked, key=lambda action: action.id not in ALWAYS):
            need = sum(len(part) for part in texts[action.id]) + 3
            if used + need - 2 <= width:
                chosen.append(action)
                used += need
        line = Line().add(" ")
        self._places = []
        for action in sorted(chosen, key=_reading_order):
            start = line.width
            usable = action.why_not(at) is None
            keys, label = texts[action.id]
            line.add(keys, "key" if usable else "faint").add(f" {label}", "" if usable else "faint")
            self._places.append((start, line.width, action))
            line.add("  ")
        return [line.row(width)]

    @staticmethod
    def _label(action: Action, at: can.Situation) -> str:
        return "Resume" if action.id == "pause" and can.halted(at) else action.label

    def on_click(self, event: events.Click) -> None:
        for start, end, action in self._places:
            if start <= event.x < end:
                cast("TrainerApp", self.app).act(action, by_mouse=True)


def _reading_order(action: Action) -> tuple[bool, int]:
    """As ranked, but leaving is always last."""
    return action.id == "quit", action.footer
