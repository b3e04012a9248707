"""A second chart beside the loss on very wide screens: one series of your choice."""

from __future__ import annotations

import math

from textual import events

from trainer_tui.tui import figures
from trainer_tui.tui.chart import Series, axes_for, bucketed, plot, snapped
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.loss import window_of

CHOICES = ("grad_norm", "learning_rate", "tokens_per_s")
WORDS = {"grad_norm": "Gradient norm", "learning_rate": "Learning rate", "tokens_per_s": "Tokens/s"}


class ExtraChart(FramedPanel, can_focus=False):
    """Follows the window of the loss chart; a click shows the next series."""

    def __init__(self) -> None:
        super().__init__(id="extra")
        self._choice = 0
        self._drawn: tuple[object, ...] | None = None
        self._chart: list[Row] = []

    @property
    def series(self) -> str:
        return CHOICES[self._choice]

    @property
    def title_text(self) -> str:  # type: ignore[override]
        return WORDS[self.series]

    def corner(self, width: int) -> Line:
        points = self.screen_app.view.curves.get(self.series, ())
        last = points[-1].mean if points else None
        if self.series == "learning_rate":
            return Line().add(figures.rate(last))
        return Line().add(
            figures.short_count(last) if last is None or last > 100 else f"{last:.3f}"
        )

    def inner(self, width: int, height: int) -> list[Row]:
        app = self.screen_app
        points = app.view.curves.get(self.series, ())
        drawn = (points, app.loss.look, width, height, self.series)
        if self._drawn is not None and all(
            a is b or a == b for a, b in zip(drawn, self._drawn, strict=True)
        ):
            return self._chart
        low, high = window_of(app.loss.look, app.view.curves)
        high = snapped(low, high, 2 * width)
        values = [(p.step, p.mean) for p in points if p.mean is not None and math.isfinite(p.mean)]
        series = Series("mark", bucketed(values, low, high, width))
        if not series.points:
            return [Line().add(" no figures yet", "dim").row(width)]
        axes = axes_for([series], low, high, False)
        self._chart = plot([series], axes, [], width, height, self.glyphs)
        self._drawn = drawn
        return self._chart

    def on_click(self, event: events.Click) -> None:
        self._choice = (self._choice + 1) % len(CHOICES)
        self.repaint()
