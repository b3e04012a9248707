"""The row above the footer: is what I see live, and the answer to what I just did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never, cast

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, both, cut
from trainer_tui.tui.situation import GUARDED
from trainer_tui.tui.view import Connecting, Live, Lost, Panel, View

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


Part = tuple[str, str]  # text, role


def sample_words(view: View, now_s: float) -> Part:
    """How old the newest training sample is, and how loudly to say it."""
    state = view.training.state
    if view.sample_at_s is None:
        resting = state in ("idle", "stopped", "paused")
        return ("live", "good") if resting else ("live, no sample yet", "dim")
    seconds = now_s - view.sample_at_s
    if state not in ("training", "evaluating", "saving"):
        # By the minute, so that a still screen stays still.
        return f"live, sample {figures.age(seconds)}" if seconds >= 60 else "live", "good"
    role = "good" if seconds < 30 else "warn" if seconds < 300 else "bad"
    return f"live, {figures.age(seconds)}", role


def rows(view: View, now_s: float, rate_bytes: float, width: int, glyphs: Glyphs) -> list[Row]:
    """One row. What matters most comes first and is cut where there is no room; what is only
    nice to know is left out whole."""
    match view.link:
        case Connecting():
            first, more = (f" {glyphs.ellipsis} connecting to the daemon", "dim"), []
        case Lost(since_s, attempts, why):
            first = (f" {glyphs.cross} daemon lost {figures.age(now_s - since_s)}", "bad")
            more = [(f"trying again ({attempts})", "dim"), ("training may well go on", "dim")]
            if view.sample_at_s is not None:
                more.append((f"last sample {figures.age(now_s - view.sample_at_s)}", "dim"))
            more.append((printable(why, 80), "dim"))
        case Live():
            words, role = sample_words(view, now_s)
            first, more = (f" {glyphs.dot} {words}", role), _nice_to_know(view, rate_bytes)
        case _ as never:
            assert_never(never)
    line = Line().add(*first)
    for text, role in _wanted(view):
        line.add(f" {glyphs.middle} {text}", role)
    for text, role in more:
        if line.width + len(text) + 3 <= width:
            line.add(f" {glyphs.middle} {text}", role)
    return [cut(tuple(line.spans), width)]


def _wanted(view: View) -> list[Part]:
    """Why it does not train, what is wrong with the settings, what waits for a person."""
    status = view.status
    if status is None or not isinstance(view.link, Live):
        return []
    parts: list[Part] = []
    if status.training.reason and not view.is_new:
        parts.append((printable(status.training.reason, 120), "warn"))
    if status.config.problem:
        parts.append((f"config: {printable(str(status.config.problem), 120)}", "bad"))
    return parts + _waiting_edits(status.config.pending)


def _waiting_edits(pending: list[Any]) -> list[Part]:
    """What the most urgent of them wait for."""
    whens = [p.get("when") if isinstance(p, dict) else GUARDED for p in pending]
    if guarded := whens.count(GUARDED):
        return [(f"{_changes(guarded)} for approval: a", "warn")]
    if others := len(whens) - whens.count("restart"):
        return [(f"{_changes(others)} for the next file", "dim")]
    return [(f"{_changes(len(whens))} for the daemon's next start", "dim")] if whens else []


def _nice_to_know(view: View, rate_bytes: float) -> list[Part]:
    parts: list[Part] = []
    if view.status is not None:
        daemon = view.status.daemon
        parts.append((f"daemon up {figures.coarse(daemon.uptime_s)}", "dim"))
        if daemon.viewers is not None and daemon.viewers > 1:
            parts.append((f"{daemon.viewers} viewers", "dim"))
    if rate_bytes >= 50:
        parts.append((f"{rate_bytes / 1000:.1f} kB/s", "dim"))
    return parts


def _changes(count: int) -> str:
    return "a config change waits" if count == 1 else f"{count} config changes wait"


class StatusLine(Canvas):
    """Also shows the last reply for a while, in place of the rest."""

    warns = True

    def __init__(self) -> None:
        super().__init__(id=Panel.STATUS.value)
        self.notice: tuple[str, str] | None = None

    def draw(self, width: int, height: int) -> list[Row]:
        app = cast("TrainerApp", self.app)
        if app.finding is not None:
            line = Line().add(f" {self.glyphs.play} find: ", "key").add(printable(app.finding))
            return [line.add("_", "focus").add("   enter keeps, esc clears", "dim").row(width)]
        if self.notice is not None:
            text, role = self.notice
            return [Line().add(f" {printable(text)}", role).row(width)]
        mark = Line().add(" read-only " if app.read_only else "", "warn")
        room = width - mark.width
        found = rows(app.view, app.now_s(), app.bytes_per_s, room, self.glyphs)
        return [both(Line(list(found[0]), room), mark, width)]
