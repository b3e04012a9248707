"""Is it learning? Loss and validation loss: a chart, or two sparklines when the panel is low.

Invariant: the chart is drawn again only when its points, its size or its settings changed.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textual import events

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.chart import (
    Axes,
    Mark,
    Series,
    axes_for,
    bucketed,
    envelope,
    plot,
    smoothed,
    snapped,
)
from trainer_tui.tui.compare import Earlier, begin_of
from trainer_tui.tui.glyphs import Glyphs, sparkline
from trainer_tui.tui.ink import Line, Row, fit
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.first_run import nothing_trained
from trainer_tui.tui.view import Panel, Point, Said, View

EMAS = (0.0, 0.6, 0.9, 0.99)
DAEMON_EMA = 0.9  # what `loss_ema` is smoothed with
LOW_ROWS = 6
READOUT_CELLS = 18
AUTO_STEPS = 20_000
MIN_WINDOW = 20
MEANWHILE_S = 0.06
MARKS = 12  # of a kind, the newest
TICKS = 40
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})\b")


@dataclass(frozen=True, slots=True)
class Look:
    """How the chart is looked at. `window` in steps; None: everything, up to `AUTO_STEPS`."""

    log: bool = False
    ema: int = 2
    follow: bool = True
    window: float | None = None
    end: float | None = None  # where the window ends when it does not follow
    cursor: float | None = None
    compare: int | None = None  # a version number
    earlier: Earlier | None = None  # a file trained before


def window_of(look: Look, curves: dict[str, tuple[Point, ...]]) -> tuple[float, float]:
    """The steps in view."""
    ends = [points[-1].step for points in curves.values() if points]
    starts = [points[0].step for points in curves.values() if points]
    last = max(ends, default=1.0)
    first = min(starts, default=0.0)
    high = last if look.follow or look.end is None else look.end
    low = high - look.window if look.window is not None else max(first, high - AUTO_STEPS)
    return (low, high) if high > low else (high - 1, high)


def marks_of(view: View, glyphs: Glyphs) -> list[Mark]:
    """Versions and file boundaries as upright lines; errors, steps without a finite loss and
    pauses as signs at the foot; checkpoints as ticks on the axis."""
    points = view.curves.get("loss", ())
    marks = [
        Mark(version.global_step, f"v{version.number:03d}", "mark")
        for version in view.versions[:MARKS]
        if version.global_step is not None
    ]
    ends = [job.finished_at for job in view.jobs if job.state == "completed" and job.finished_at]
    for moment in ends[:MARKS]:
        if (step := step_at(points, moment)) is not None:
            marks.append(Mark(step, "", "faint"))
    for point in points:
        if point.mean is None or not math.isfinite(point.mean):
            marks.append(Mark(point.step, glyphs.cross, "bad", "foot"))
    pauses = [event for event in view.said if _halts(event)]
    errors = [event for event in view.said if event.level == "error"]
    for events_, sign, role in ((pauses, glyphs.pause, "warn"), (errors, glyphs.cross, "bad")):
        for event in events_[:MARKS]:
            if (step := step_of(event, points)) is not None:
                marks.append(Mark(step, sign, role, "foot"))
    saved = [found for event in view.said if (found := saved_step(event)) is not None]
    return marks + [Mark(step, glyphs.saved, "good", "axis") for step in saved[:TICKS]]


def _halts(event: Said) -> bool:
    """Whether somebody let training stand still there."""
    wish = event.data.get("intent") if isinstance(event.data, dict) else None
    return event.topic == "training" and wish in ("pause", "stopped")


def saved_step(event: Said) -> float | None:
    """The step of the checkpoint that the event tells of."""
    found = _CHECKPOINT.match(event.text) if event.topic == "checkpoint" else None
    return float(found[1]) if found else None


def step_of(event: Said, points: Sequence[Point]) -> float | None:
    """The step at which it happened: the one it names, else the one of its time."""
    named = event.data.get("step") if isinstance(event.data, dict) else None
    if isinstance(named, int | float):
        return float(named)
    return step_at(points, event.at) if event.at else None


def step_at(points: Sequence[Point], moment: str) -> float | None:
    """The step that was being trained at `moment` (ISO 8601, UTC); None outside the points."""
    index = bisect_left(points, moment, key=lambda point: point.at or "")
    if not points or index == len(points) or (index == 0 and moment < (points[0].at or "")):
        return None
    return points[index].step


def trend(points: Sequence[tuple[float, float]], glyphs: Glyphs) -> tuple[str, str]:
    """An arrow for where the smoothed curve is going: down is good."""
    if len(points) < 8:
        return "", ""
    now = points[-1][1]
    then = points[-max(8, len(points) // 5)][1]
    change = (now - then) / max(abs(then), 1e-9)
    if change < -0.003:
        return glyphs.down, "good"
    return (glyphs.up, "warn") if change > 0.003 else ("", "")


def readout(view: View, look: Look, height: int, glyphs: Glyphs) -> list[Row]:
    """The figures beside the chart, or those at the cursor; the most wanted come first."""
    training = view.training
    train = smoothed(view.curves.get("loss", ()), EMAS[look.ema])
    val = [(p.step, p.mean) for p in view.curves.get("val_loss", ()) if p.mean is not None]
    loss = training.loss_ema if training.loss_ema is not None else training.loss
    if EMAS[look.ema] != DAEMON_EMA and train:
        loss = train[-1][1]
    val_loss, step = training.val_loss, training.global_step
    if look.cursor is not None:
        loss, val_loss, step = at_step(train, look.cursor), at_step(val, look.cursor), None
    gap = val_loss - loss if val_loss is not None and loss is not None else None
    shown = look.cursor if look.cursor is not None else step
    lines = [
        _figure("step", figures.count(shown), "focus" if look.cursor is not None else ""),
        _figure("train", figures.loss(loss), "train", *trend(train, glyphs)),
        _figure("val", figures.loss(val_loss), "val", *trend(val, glyphs)),
        _figure("gap", figures.loss(gap)),
        _figure("tok/s", figures.short_count(training.tokens_per_s)),
        _figure("lr", figures.rate(training.learning_rate)),
        _figure("grad", f"{training.grad_norm:.2f}" if training.grad_norm is not None else "–"),
    ]
    state = Line().add(f"EMA {_ema_text(look.ema)}", "dim").add("  y ", "dim")
    state.add("log" if look.log else "lin", "dim")
    more = [
        _figure("best", figures.loss(training.best_val_loss)),
        _figure("s/step", f"{training.step_s:.2f}" if training.step_s is not None else "–"),
        _figure("MFU", figures.percent(training.mfu, 1.0)),
        _figure("seen", figures.short_count(training.tokens_seen)),
        _figure("unsaved", figures.count(training.unsaved_steps)),
    ]
    lines += more[: max(0, height - len(lines) - 2)]
    lines = lines[: height - 1]
    while len(lines) < height - 1:
        lines.append(Line())
    return [line.row(READOUT_CELLS) for line in (*lines, state)]


def at_step(points: Sequence[tuple[float, float]], step: float) -> float | None:
    """The value of the point nearest to `step`."""
    return min(points, key=lambda point: abs(point[0] - step))[1] if points else None


def _ema_text(index: int) -> str:
    return "off" if index == 0 else f"{EMAS[index]:.2f}".lstrip("0")


def _figure(name: str, value: str, role: str = "", arrow: str = "", arrow_role: str = "") -> Line:
    return (
        Line()
        .cell(name, max(7, len(name) + 1), "dim")
        .add(value, role)
        .add(f" {arrow}" if arrow else "", arrow_role)
    )


def sparks(view: View, look: Look, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """Two sparklines and, when there is a third row, the figures of the step."""
    training = view.training
    low, high = window_of(look, view.curves)
    rows: list[Row] = []
    wanted = (
        ("train", "loss", training.loss_ema, "train"),
        ("val", "val_loss", training.val_loss, "val"),
    )
    for name, series, value, role in wanted:
        points = smoothed(view.curves.get(series, ()), EMAS[look.ema] if name == "train" else 0.0)
        values = [y for x, y in points if low <= x <= high]
        line = Line().add(f" {name:<6}", "dim")
        line.cell(sparkline(values, width - 18, glyphs), width - 18, role)
        rows.append(line.add(f" {figures.loss(value)}", role).row(width))
    line = Line().add(" ")
    for name, text in (
        ("lr", figures.rate(training.learning_rate)),
        ("grad", f"{training.grad_norm:.2f}" if training.grad_norm is not None else "–"),
        ("tok/s", figures.short_count(training.tokens_per_s)),
        ("best val", figures.loss(training.best_val_loss)),
    ):
        line.add(f"{name} ", "dim").add(f"{text}   ")
    rows.append(line.row(width))
    return rows[:height] if height != 1 else rows[:1]


def chart_rows(view: View, look: Look, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """The chart with its readout on the right, `height` rows of `width` cells."""
    side = READOUT_CELLS + 3 if width >= 58 else 0
    body = width - side
    low, high = window_of(look, view.curves)
    high = snapped(low, high, 2 * body)
    series = curves_of(view, look, low, high, body)
    axes = axes_for(series, low, high, look.log)
    rows = plot(series, axes, marks_of(view, glyphs), body, height, glyphs, look.cursor)
    if not side:
        return rows
    beside = readout(view, look, height, glyphs)
    bar = ((f"  {glyphs.upright} ", "faint"),)
    return [fit((*row, *bar, *right), width) for row, right in zip(rows, beside, strict=True)]


def curves_of(view: View, look: Look, low: float, high: float, columns: int) -> list[Series]:
    """Raw envelope below, validation loss over it, smoothed training loss on top."""
    loss, val = view.curves.get("loss", ()), view.curves.get("val_loss", ())
    out: list[Series] = []
    version = view.version(look.compare)
    if version is not None and version.loss is not None:
        out.append(Series("compare", ((low, version.loss), (high, version.loss))))
    if look.earlier is not None:
        points = look.earlier.laid_at(begin_of(view, high, look.earlier.steps))
        over = smoothed(points, EMAS[look.ema])
        out.append(Series("compare", bucketed(over, low, high, columns)))
    if look.ema:
        out.append(Series("raw", envelope(loss, low, high, columns)))
    measured = tuple((p.step, p.mean) for p in val if p.mean is not None and math.isfinite(p.mean))
    out.append(Series("val", bucketed(measured, low, high, columns)))
    out.append(Series("train", bucketed(smoothed(loss, EMAS[look.ema]), low, high, columns)))
    return [item for item in out if item.points]


class LossPanel(FramedPanel):
    number = 1
    title_text = "Loss"

    def __init__(self) -> None:
        super().__init__(id=Panel.LOSS.value)
        self.look = Look()
        self._drawn: tuple[object, ...] | None = None
        self._chart: list[Row] = []

    def corner(self, width: int) -> Line | None:
        if not self.screen_app.view.curves.get("loss"):
            return None
        line = Line().add(f"train {self.glyphs.train_key}", "train")
        line.add(f"  val {self.glyphs.val_key}", "val")
        if self.look.compare is not None:
            line.add(f"  v{self.look.compare:03d} {self.glyphs.val_key}", "compare")
        if self.look.earlier is not None:
            name = printable(self.look.earlier.name, 16)
            line.add(f"  {name} {self.glyphs.val_key}", "compare")
        if self.look.window is not None:
            line.add(f"  last {figures.short_count(self.look.window)}", "dim")
        follow = f"  follow {self.glyphs.play}" if self.look.follow else "  held  f"
        return line.add(follow, "dim" if self.look.follow else "warn")

    def inner(self, width: int, height: int) -> list[Row]:
        view = self.screen_app.view
        if not view.curves.get("loss") and not view.curves.get("val_loss"):
            return nothing_trained(view, width, height, self.glyphs)
        if height < LOW_ROWS:
            return sparks(view, self.look, width, height, self.glyphs)
        drawn = (view.curves, view.training, view.versions, self.look, width, height)
        if self._drawn is None or any(
            a is not b and a != b for a, b in zip(drawn, self._drawn, strict=True)
        ):
            self._chart = chart_rows(view, self.look, width, height, self.glyphs)
            self._drawn = drawn
        return self._chart

    def copy_text(self) -> str:
        training = self.screen_app.view.training
        return f"step {training.global_step} loss {training.loss} val_loss {training.val_loss}"

    def set_look(self, **change: object) -> None:
        self.look = replace(self.look, **change)  # type: ignore[arg-type]
        self.repaint()

    def _axes(self) -> Axes:
        low, high = window_of(self.look, self.screen_app.view.curves)
        return Axes(low, high, 0.0, 1.0)

    def move_cursor(self, columns: int) -> None:
        """The cursor, `columns` cells to the right; leaves follow mode where it is."""
        axes = self._axes()
        width = max(8, self.size.width - READOUT_CELLS - 10)
        per_cell = (axes.x_high - axes.x_low) / width
        start = self.look.cursor if self.look.cursor is not None else axes.x_high
        step = min(axes.x_high, max(axes.x_low, start + columns * per_cell))
        self.set_look(cursor=step)

    def zoom(self, factor: float) -> None:
        """Show `factor` times the steps; ends at the cursor's side when there is one. Drawn when
        the points of the window have come; over a slow link, meanwhile with those at hand."""
        curves = self.screen_app.view.curves
        low, high = window_of(self.look, curves)
        ends = [points[-1].step for points in curves.values() if points]
        starts = [points[0].step for points in curves.values() if points]
        if not ends:
            return
        total = max(ends) - min(starts)
        window = max(MIN_WINDOW, (high - low) * factor)
        self.look = replace(self.look, window=None if window >= total and factor > 1 else window)
        self.screen_app.chart_window_changed(self.look)
        self.set_timer(MEANWHILE_S, self.repaint)

    def follow(self) -> None:
        if self.look.follow:
            _, high = window_of(self.look, self.screen_app.view.curves)
            self.set_look(follow=False, end=high)
        else:
            self.set_look(follow=True, end=None, cursor=None)

    def step(self, rows: int) -> None:
        self.move_cursor(rows)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.focus()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.zoom(2.0)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.zoom(0.5)
