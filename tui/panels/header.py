"""The first row: what machine, is it alive, which model, which step, until when."""

from __future__ import annotations

from typing import assert_never

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, fit
from trainer_tui.tui.view import Connecting, Live, Lost, View

RUNNING = ("starting", "training", "evaluating", "saving")
_STATES: dict[str, tuple[str, str]] = {
    "training": ("dot", "good"),
    "evaluating": ("dot", "good"),
    "saving": ("dot", "good"),
    "starting": ("dot", "warn"),
    "pausing": ("pause", "warn"),
    "paused": ("pause", "warn"),
    "stopping": ("pause", "warn"),
    "stopped": ("pause", "warn"),
    "idle": ("dot", "dim"),
    "waiting": ("warn", "warn"),
    "degraded": ("warn", "bad"),
}


def state_words(view: View, glyphs: Glyphs) -> tuple[str, str]:
    """(text, role) of what training is doing, in one word a glance can read."""
    match view.link:
        case Connecting():
            return f"{glyphs.ellipsis} CONNECTING", "dim"
        case Lost():
            return f"{glyphs.cross} DAEMON LOST", "bad"
        case Live():
            state = view.training.state
            glyph, role = _STATES.get(state, ("dot", "warn"))
            return f"{getattr(glyphs, glyph)} {state.upper()}", role
        case _ as never:
            assert_never(never)


def model_name(view: View) -> str:
    """`qwen3-0.6b v042`: the last part of the name, and the newest version that is in the model."""
    model = view.status.model if view.status else None
    if model is None or not model.name:
        return "no model yet"
    name = printable(model.name.rstrip("/").rsplit("/", 1)[-1], 28).lower()
    live = [version.number for version in view.versions if version.live]
    number = max(live) if live else None if view.versions else model.latest_version
    return f"{name} v{number:03d}" if number else name


def rows(view: View, width: int, glyphs: Glyphs) -> list[Row]:
    """One row; what matters least goes first when there is no room."""
    status = view.status
    words, role = state_words(view, glyphs)
    host = printable(status.daemon.host, 24) if status else ""
    training = view.training
    low, high = (training.eta_queue_s or [None, None])[:2] if training.eta_queue_s else (None, None)
    step = f"step {figures.count(training.global_step)}"
    eta = figures.span(low, high) if low is not None else figures.duration(training.eta_job_s)
    goes_on = training.state in RUNNING
    parts: list[tuple[str, str, int]] = [  # text, role, rank: the highest is dropped first
        (" trainer-tui", "title", 4),
        (host, "dim", 5),
        (words, f"strong+{role}", 0),
        (model_name(view), "", 3),
        (step, "", 1),
        # While nothing moves it is no time of arrival, only how much work is left.
        (f"ETA {eta}" if goes_on else f"{eta} left", "" if goes_on else "dim", 2),
    ]
    if status is None or training.global_step is None:
        parts = [part for part in parts if not part[0].startswith("step")]
    if eta == figures.UNKNOWN:
        parts = [part for part in parts if part[2] != 2]
    parts = [part for part in parts if part[0]]
    while len(parts) > 1 and sum(len(text) + 2 for text, _, _ in parts) > width:
        parts.remove(max(parts, key=lambda part: part[2]))
    if not parts[0][0].startswith(" "):
        parts[0] = (f" {parts[0][0]}", *parts[0][1:])
    return [_spread(parts, width)]


def _spread(parts: list[tuple[str, str, int]], width: int) -> Row:
    """The state and what is left of it flush left, the figures flush right, air between."""
    used = sum(len(text) for text, _, _ in parts)
    gaps = len(parts) - 1
    gap, more = divmod(max(0, width - 1 - used), max(1, gaps))
    if gap > 4:
        left = [part for part in parts if part[2] in (4, 5, 0)]
        right = [part for part in parts if part[2] not in (4, 5, 0)]
        line = Line()
        for text, role, _ in left:
            line.add(text, role).add("   ")
        tail = Line()
        for text, role, _ in right:
            tail.add("    " if tail.width else "").add(text, role)
        line.to(width - 1 - tail.width)
        line.spans += tail.spans
        return fit(tuple(line.spans), width)
    line = Line()
    for index, (text, role, _) in enumerate(parts):
        line.add(text, role)
        if index < gaps:
            line.add(" " * (gap + (1 if index >= gaps - more else 0)))
    return line.row(width)


def window_title(view: View) -> str:
    """`training · gpubox`: short, and still from one step to the next."""
    if isinstance(view.link, Lost):
        return "daemon lost · trainer-tui"
    host = view.status.daemon.host if view.status else ""
    return f"{view.training.state} · {host or 'trainer-tui'}"


class Header(Canvas):
    warns = True

    def draw(self, width: int, height: int) -> list[Row]:
        return rows(self.app.view, width, self.glyphs)  # type: ignore[attr-defined]
