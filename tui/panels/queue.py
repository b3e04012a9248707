"""The queue: what trains, what comes next, what failed and why; moved by keys or by mouse.

Invariant: a drag changes nothing before the button is released over another place, and escape or
a lost daemon ends it without a change.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.timer import Timer

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.glyphs import Glyphs, bar
from trainer_tui.tui.ink import Line, Row, cut, over
from trainer_tui.tui.panels.base import ListPanel
from trainer_tui.tui.panels.first_run import nothing_queued
from trainer_tui.tui.view import Job, Panel, View

PRIORITY_WORDS = {"high": "HIGH", "normal": "normal", "low": "low"}
EDGE_SCROLL_S = 0.12
LEFT_ALONE_S = 30.0  # then a job that has ended since is no longer held on to
RUNNING = ("starting", "training", "evaluating", "saving", "pausing", "stopping")
IDS_LOOKED_AT = 2000
LATE_COLUMNS = 92  # from this width on, the 90th percentile too


@dataclass(frozen=True, slots=True)
class Drag:
    """A job on its way; `before` is the index among the waiting jobs that it would go ahead of."""

    job_id: int
    before: int | None


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths of one row; 0 leaves a column out."""

    id: int
    name: int
    rows: int
    middle: int
    eta: int
    priority: int
    note: int


def columns(width: int, id_cells: int = 3) -> Columns:
    """How `width` cells are shared out; the name and the middle take what is left. With room, the
    estimate has its 90th percentile beside it."""
    eta, priority, note = 14 if width >= LATE_COLUMNS else 6, 6, 4
    rows = 9 if width >= 62 else 0
    fixed = 3 + id_cells + 2 + (rows + 1 if rows else 0) + eta + 2 + priority + 1 + note + 1
    if width < 50:
        note, fixed = 0, fixed - note - 1
    left = max(8, width - fixed)
    name = max(8, min(34, left * 45 // 100))
    return Columns(id_cells, name, rows, max(0, left - name - 1), eta, priority, note)


def mark(job: Job, glyphs: Glyphs, running: bool = True) -> tuple[str, str]:
    match job.state:
        case "processing":
            return (glyphs.play, "good") if running else (glyphs.pause, "warn")
        case "waiting" if job.verdict == "block":
            return glyphs.cross, "bad"
        case "waiting":
            return (glyphs.pause, "warn") if job.held else (glyphs.grip, "dim")
        case "failed":
            return glyphs.cross, "bad"
        case _:
            return glyphs.check, "old"


def middle(job: Job, width: int, glyphs: Glyphs, running: bool) -> Line:
    """What is most worth knowing of a job: progress, verdict, reason, result."""
    line = Line()
    if job.state == "processing" and job.why_waiting:
        words = printable(job.why_waiting, 200)
        return line.add(words if len(words) <= width else "trained, not saved", "good")
    if job.state == "processing":
        share = job.fraction or 0.0
        filled, rest = bar(share, max(4, min(28, width - 6)), glyphs)
        line.add(filled, "bar" if running else "warn").add(rest, "off")
        return line.add(f" {figures.percent(share, 1.0):>3}")
    if job.state == "failed":
        reason = job.error.message if job.error and job.error.message else job.summary
        return line.add(printable(reason or "failed", 200), "bad")
    if job.state == "completed":
        if job.val_before is not None and job.val_after is not None:
            change = job.val_after - job.val_before
            return line.add(f"val {figures.signed(change)}", "good" if change <= 0 else "warn")
        return line.add(printable(job.summary or "done", 200), "dim")
    if job.held:
        return line.add("held: h lets it go", "warn")
    if job.not_before:
        return line.add(f"waits until {figures.day(job.not_before)}", "dim")
    why = job.why_waiting or ""
    if why and "ahead" not in why and "next" not in why:
        return line.add(f"waits: {printable(why, 200)}", "warn")
    role = {"ok": "dim", "warn": "warn", "block": "bad"}.get(job.verdict, "dim")
    return line.add(printable(job.summary or job.verdict, 200), role)


def eta(job: Job, late: bool = False) -> str:
    """How long it takes. `late`: also how long it takes at most, in nine cases of ten."""
    if job.state == "completed":
        return figures.duration(job.seconds) if job.seconds is not None else ""
    if not job.eta_s or len(job.eta_s) < 2 or job.eta_s[1] is None:
        return ""
    start, end = job.eta_s[0], job.eta_s[1]
    if job.state == "processing":
        words = "" if job.why_waiting else figures.duration(end)
    else:
        words = "~" + figures.duration(end - (start or 0.0))
    slow = job.eta_p90_s
    if not late or not words or not slow or len(slow) < 2 or slow[1] is None:
        return words
    return f"{words} ≤{figures.duration(slow[1] - (slow[0] or 0.0))}"


def note(job: Job, running: bool = True) -> tuple[str, str]:
    match job.state:
        case "processing" if job.why_waiting:
            return "save", "dim"
        case "processing":
            return ("run", "good") if running else ("wait", "warn")
        case "failed":
            return "fix", "key"
        case "completed":
            return "done", "dim"
        case _:
            return ("next", "strong") if job.place == 1 else (str(job.place or ""), "faint")


def job_row(job: Job, shape: Columns, width: int, glyphs: Glyphs, running: bool) -> Row:
    """One job as one row of `width` cells. `running`: a trainer works on the one in hand."""
    sign, sign_role = mark(job, glyphs, running)
    quiet = "dim" if job.state == "completed" else ""
    line = Line().add(" ").add(sign, sign_role).add(f" #{job.id:<{shape.id}} ", quiet or "dim")
    line.cell(printable(job.name), shape.name, quiet).add(" ")
    if shape.rows:
        known = "" if not job.rows else f"{figures.short_count(job.rows)} rows"
        line.cell(known, shape.rows, "dim", right=True).add(" ")
    at = line.width
    eta_cells = 0 if job.state == "processing" and job.why_waiting else shape.eta
    room = width - at - eta_cells - shape.priority - 4 - (shape.note + 1 if shape.note else 0)
    if job.state == "failed":
        room = width - at - shape.note - 3
    detail = middle(job, max(0, room), glyphs, running)
    line.spans += cut(tuple(detail.spans), max(0, room))
    line.width = at + max(0, room)
    line.add(" ")
    if job.state != "failed":
        line.cell(eta(job, shape.eta > 6), eta_cells, quiet, right=True).add("  ")
        role = {"high": "high", "low": "low"}.get(job.priority, "")
        line.cell(PRIORITY_WORDS.get(job.priority, job.priority), shape.priority, quiet or role)
    if shape.note:
        words, role = note(job, running)
        line.to(width - shape.note - 1).cell(words, shape.note, role, right=True)
    return line.row(width)


def shown_jobs(view: View, wanted: str) -> list[Job]:
    """The jobs that match the filter, in the API's order."""
    if not wanted:
        return list(view.jobs)
    words = wanted.lower().split()
    return [job for job in view.jobs if all(word in _text(job) for word in words)]


def _text(job: Job) -> str:
    error = job.error.message if job.error and job.error.message else ""
    parts = (f"#{job.id}", job.name, job.state, job.priority, job.verdict, job.summary or "", error)
    return " ".join(parts).lower()


class QueuePanel(ListPanel):
    number = 2
    title_text = "Queue"

    def __init__(self) -> None:
        super().__init__(id=Panel.QUEUE.value)
        self.drag: Drag | None = None
        self._ended_when_chosen = False
        self._edge: Timer | None = None
        self._edge_step = 0

    @property
    def jobs(self) -> list[Job]:
        return shown_jobs(self.screen_app.view, self._filter)

    def keys(self) -> list[object]:
        return [job.id for job in self.jobs]

    def first_choice(self) -> int:
        return next((i for i, job in enumerate(self.jobs) if job.state == "waiting"), 0)

    def changed(self) -> None:
        self._ended_when_chosen = self._ended
        super().changed()

    @property
    def _ended(self) -> bool:
        """Whether the job that is held on to is done or failed."""
        job = self.screen_app.view.job(self._key) if isinstance(self._key, int) else None
        return job is not None and job.state in ("completed", "failed")

    def _settle(self, keys: list[object]) -> int:
        """Left alone, the selection does not follow a job to the end of the list: what trains is
        what is shown."""
        if self._ended and not self._ended_when_chosen and self.left_alone(LEFT_ALONE_S):
            self._key, self._top = None, 0
        return super()._settle(keys)

    @property
    def job(self) -> Job | None:
        key = self.selected
        return self.screen_app.view.job(key) if isinstance(key, int) else None

    def corner(self, width: int) -> Line:
        view = self.screen_app.view
        waiting = view.status.queue.waiting if view.status else len(view.waiting)
        if self._filter:
            return Line().add(f"find {printable(self._filter, 20)}: {len(self.jobs)} found", "warn")
        line = Line().add(f"{figures.count(waiting)} waiting", "")
        failed = view.status.queue.failed if view.status else 0
        if failed:
            line.add(f" {self.glyphs.middle} {failed} failed", "bad")
        if width >= 70 and waiting > 1 and not self.screen_app.read_only:
            line.add(f" {self.glyphs.middle} drag {self.glyphs.grip} or ", "dim").add("J/K", "key")
            line.add(f" {self.glyphs.middle} undo ", "dim").add("u", "key")
        return line

    def inner(self, width: int, height: int) -> list[Row]:
        jobs = self.jobs
        if not jobs:
            if self._filter:
                return [Line().add(" nothing matches; esc shows all", "dim").row(width)]
            return nothing_queued(self.screen_app.view, width)
        self._settle(self.keys())
        running = self.screen_app.view.training.state in RUNNING
        shape = columns(width, max(3, *(len(str(job.id)) for job in jobs[:IDS_LOOKED_AT])))
        marks = 1 if self.drag and self.drag.before is not None else 0
        rows: list[Row] = []
        waiting = [job.id for job in self.screen_app.view.waiting]
        for index in self.window(len(jobs), height - marks):
            job = self.screen_app.view.in_hand(jobs[index])
            if self._mark_above(job, waiting):
                rows.append(self._insertion(width))
            row = job_row(job, shape, width, self.glyphs, running)
            if self.drag and self.drag.job_id == job.id:
                row = over(row, "lost")
            elif index == self._index:
                row = over(row, "select")
            rows.append(row)
        if marks and self.drag and self.drag.before == len(waiting):
            after = [i for i, job in enumerate(jobs) if job.state == "waiting"]
            at = (after[-1] + 1 - self._top) if after else len(rows)
            rows.insert(max(0, min(at, len(rows))), self._insertion(width))
        return rows

    def window(self, total: int, height: int) -> range:
        """While a job is dragged the rows follow the mouse, not the selection."""
        if self.drag is None:
            return super().window(total, height)
        self._top = max(0, min(self._top, total - height))
        return range(self._top, min(total, self._top + height))

    def _mark_above(self, job: Job, waiting: list[int]) -> bool:
        drag = self.drag
        if drag is None or drag.before is None or drag.before >= len(waiting):
            return False
        return waiting[drag.before] == job.id

    def _insertion(self, width: int) -> Row:
        job = self.screen_app.view.job(self.drag.job_id) if self.drag else None
        name = f" #{job.id} {printable(job.name, 30)} " if job else ""
        line = Line().add(" " + self.glyphs.insert * 2, "insert").add(name, "insert")
        return line.to(width - 1, self.glyphs.insert, "insert").row(width)

    def copy_text(self) -> str:
        job = self.job
        return f"#{job.id} {job.name}" if job else ""

    # --- the mouse: press on a waiting job, move, release ---

    def on_mouse_down(self, event: events.MouseDown) -> None:
        super().on_mouse_down(event)
        job = self.job
        on_row = self.row_at(event.y) is not None
        if on_row and job and job.state == "waiting" and not self.screen_app.blocked_reason():
            self.drag = Drag(job.id, None)
            self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.drag is None:
            return
        self._aim(event.y)
        last = self.size.height - 2
        self._scroll_at_edge(-1 if event.y <= 1 else 1 if event.y >= last else 0)

    def _aim(self, y: int) -> None:
        """Where the job would land if it were released at row `y`."""
        if self.drag is None:
            return
        waiting = [job.id for job in self.screen_app.view.waiting]
        jobs = self.jobs
        index = max(0, min(self._top + max(0, y - 1), len(jobs)))
        rows = self.size.height - 2
        if self._top + rows < len(jobs):  # the mark takes a row: above the last one in sight
            index = min(index, self._top + rows - 2)
        ahead = [job for job in jobs[:index] if job.state == "waiting"]
        before = (
            len(waiting)
            if not ahead and not waiting
            else waiting.index(ahead[-1].id) + 1
            if ahead
            else 0
        )
        place = waiting.index(self.drag.job_id) if self.drag.job_id in waiting else -1
        target = None if place >= 0 and before in (place, place + 1) else before
        if target != self.drag.before:
            self.drag = Drag(self.drag.job_id, target)
            self.repaint()

    def _scroll_at_edge(self, step: int) -> None:
        self._edge_step = step
        if step and self._edge is None:
            self._edge = self.set_interval(EDGE_SCROLL_S, self._scroll_on)
        elif not step and self._edge is not None:
            self._edge.stop()
            self._edge = None

    def _scroll_on(self) -> None:
        height = self.size.height - 2
        limit = max(0, len(self.jobs) - height)
        top = max(0, min(self._top + self._edge_step, limit))
        if top != self._top and self.drag is not None:
            self._top = top
            self._aim(1 if self._edge_step < 0 else self.size.height - 2)
            self.repaint()

    def on_mouse_up(self, event: events.MouseUp) -> None:
        drag = self.end_drag()
        if drag is None or drag.before is None:
            return
        waiting = [job.id for job in self.screen_app.view.waiting]
        if drag.before < len(waiting):
            body: dict[str, object] = {"before": waiting[drag.before]}
        else:
            body = {"after": waiting[-1]}
        self.screen_app.move_job(drag.job_id, body)

    def end_drag(self) -> Drag | None:
        """Stop dragging; what was being dragged, or None."""
        drag, self.drag = self.drag, None
        self._scroll_at_edge(0)
        if drag is not None:
            self._key = drag.job_id
            self.release_mouse()
            self.repaint()
        return drag
