"""The row above the footer: is what I see live, and the answer to what I just did."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never, cast

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, both
from trainer_tui.tui.situation import GUARDED
from trainer_tui.tui.view import Connecting, Live, Lost, Panel, View

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


def sample_words(view: View, now_s: float) -> tuple[str, str]:
    """How old the newest training sample is, and how loudly to say it."""
    state = view.training.state
    if view.sample_at_s is None:
        return (
            ("live", "good")
            if state in ("idle", "stopped", "paused")
            else ("live, no sample yet", "dim")
        )
    seconds = now_s - view.sample_at_s
    if state not in ("training", "evaluating", "saving"):
        return "live", "good"
    role = "good" if seconds < 30 else "warn" if seconds < 300 else "bad"
    return f"live, {figures.age(seconds)}", role


def rows(view: View, now_s: float, rate_bytes: float, width: int, glyphs: Glyphs) -> list[Row]:
    dot = f" {glyphs.middle} "
    match view.link:
        case Connecting():
            return [Line().add(f" {glyphs.ellipsis} connecting to the daemon", "dim").row(width)]
        case Lost(since_s, attempts, why):
            line = Line().add(f" {glyphs.cross} daemon lost {figures.age(now_s - since_s)}", "bad")
            line.add(f"{dot}trying again ({attempts}){dot}training may well go on", "dim")
            return [line.add(f"{dot}{printable(why, 80)}", "dim").row(width)]
        case Live():
            words, role = sample_words(view, now_s)
            line = Line().add(f" {glyphs.dot} {words}", role)
        case _ as never:
            assert_never(never)
    status = view.status
    if status is not None and status.training.reason and not view.is_new:
        line.add(f"{dot}{printable(status.training.reason, 120)}", "warn")
    if status is not None and status.config.problem:
        line.add(f"{dot}config: {printable(str(status.config.problem), 120)}", "bad")
    if status is not None and (pending := status.config.pending):
        guarded = [p for p in pending if not isinstance(p, dict) or p.get("when") == GUARDED]
        if guarded:
            line.add(f"{dot}{_changes(len(guarded))} for approval: a", "warn")
        else:
            line.add(f"{dot}{_changes(len(pending))} for the next file", "dim")
    if status is not None:
        line.add(f"{dot}daemon up {figures.coarse(status.daemon.uptime_s)}", "dim")
        viewers = status.daemon.viewers
        if viewers is not None and viewers > 1:
            line.add(f"{dot}{viewers} viewers", "dim")
    if rate_bytes >= 50:
        line.add(f"{dot}{rate_bytes / 1000:.1f} kB/s", "dim")
    return [line.row(width)]


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
        found = rows(app.view, app.now_s(), app.bytes_per_s, width, self.glyphs)
        if not app.read_only:
            return found
        return [both(Line(list(found[0]), width), Line().add(" read-only ", "warn"), width)]
