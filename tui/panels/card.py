"""When the terminal is too small for panels: the few lines that still tell how it goes."""

from __future__ import annotations

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.glyphs import Glyphs, bar, sparkline
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.panels.header import model_name, state_words
from trainer_tui.tui.view import View


def rows(view: View, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """At most `height` rows; the most wanted first."""
    training = view.training
    words, role = state_words(view, glyphs)
    lines = [Line().add(f" {words}", f"strong+{role}")]
    lines.append(
        Line().add(" loss ", "dim").add(figures.loss(training.loss_ema or training.loss), "train")
        .add("  val ", "dim").add(figures.loss(training.val_loss), "val")
    )  # fmt: skip
    low, high = (training.eta_queue_s or [None, None])[:2]
    eta = figures.span(low, high) if low is not None else figures.duration(training.eta_job_s)
    lines.append(Line().add(f" step {figures.count(training.global_step)}  ETA {eta}"))
    if training.job:
        filled, rest = bar(training.job.fraction, max(4, width - 8), glyphs)
        share = figures.percent(training.job.fraction, 1.0)
        lines.append(Line().add(f" {printable(training.job.name, width - 2)}"))
        lines.append(Line().add(" ").add(filled, "bar").add(rest, "off").add(f" {share}"))
    waiting = view.status.queue.waiting if view.status else 0
    lines.append(Line().add(f" {waiting} waiting", "dim"))
    if view.said:
        event = view.said[0]
        loud = {"error": "bad", "warning": "warn"}.get(event.level, "dim")
        lines.append(Line().add(f" {printable(event.text, width)}", loud))
    values = [point.mean for point in view.curves.get("loss", ()) if point.mean is not None]
    if len(values) > 1:
        lines.append(Line().add(" ").add(sparkline(values, width - 2, glyphs), "train"))
    lines.append(Line().add(f" {model_name(view)}", "dim"))
    return [line.row(width) for line in lines[:height]]


class Card(Canvas):
    def draw(self, width: int, height: int) -> list[Row]:
        return rows(self.app.view, width, height, self.glyphs)  # type: ignore[attr-defined]
