"""The screen: composes the panels, feeds them, and turns keys into actions.

Invariant: the screen changes nothing by itself. News are reduced at once and painted at most
once a second (at once for what a person did), so a still training writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec
from rich.console import RenderableType
from textual import events
from textual._compositor import ChopsUpdate
from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen

from trainer_tui.safety import clock
from trainer_tui.safety.errors import NoDaemon
from trainer_tui.tui import actions as table
from trainer_tui.tui import reduce as news
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.commands import Commands
from trainer_tui.tui.feed import Feed
from trainer_tui.tui.glyphs import Glyphs, choose
from trainer_tui.tui.hands import Hands
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.card import Card
from trainer_tui.tui.panels.events import EventsPanel
from trainer_tui.tui.panels.extra import ExtraChart
from trainer_tui.tui.panels.footer import Footer
from trainer_tui.tui.panels.header import Header
from trainer_tui.tui.panels.inspector import InspectorPanel
from trainer_tui.tui.panels.loss import Look, LossPanel
from trainer_tui.tui.panels.machine import MachinePanel
from trainer_tui.tui.panels.meters import MetersRow
from trainer_tui.tui.panels.queue import QueuePanel
from trainer_tui.tui.panels.statusline import StatusLine
from trainer_tui.tui.panels.versions import VersionsPanel
from trainer_tui.tui.picture import save_picture
from trainer_tui.tui.remote import Backend
from trainer_tui.tui.situation import Situation
from trainer_tui.tui.thrift import ThriftyUpdate
from trainer_tui.tui.view import Job, Live, Lost, Panel, Said, Version, View

PAINT_S = 1.0
SOON_S = 0.05
NOTICE_S = 8.0
MOUSE_QUIET = "\x1b[?1003l\x1b[?1002h"
MOUSE_OFF = "\x1b[?1003l\x1b[?1002l\x1b[?1000l"


class TrainerApp(Hands):
    """The control centre. `backend` is a daemon; tests hand in a fake or a real one.

    Args:
        seen: last event id of the visit before; what came later is summed up.
        keys: a person's own keys, action id -> keys.
        mouse_mode_quiet: ask the terminal for button motion only (mode 1002 instead of 1003).
    """

    TITLE = "trainer-tui"
    CSS_PATH = ["styles/layout.tcss", "styles/dialogs.tcss"]  # noqa: RUF012
    COMMANDS = {Commands}  # noqa: RUF012
    COMMAND_PALETTE_BINDING = "ctrl+p"
    AUTO_FOCUS = "#queue"
    HORIZONTAL_BREAKPOINTS: ClassVar = [
        (0, "-tiny"), (60, "-slim"), (80, "-narrow"), (112, "-wide"), (150, "-wider"),
        (190, "-widest"),
    ]  # fmt: skip
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-flat"), (15, "-low"), (20, "-even"), (32, "-tall")]

    def __init__(
        self,
        backend: Backend,
        *,
        palette: str = "dark",
        glyphs: Glyphs | None = None,
        keys: dict[str, str] | None = None,
        read_only: bool = False,
        seen: int | None = None,
        pictures_folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.palette = palette if not self.no_color else "mono"
        self.glyphs = glyphs or choose()
        self.read_only = read_only
        self.pictures_folder = pictures_folder or Path.cwd()
        self.view = View()
        self.feed = Feed(backend, self.hear, seen)
        self.finding: str | None = None
        self.bytes_per_s = 0.0
        self.mouse_on = True
        self.first_words = ""
        self._written = 0
        self._written_before = 0
        self._ticks = 0
        self._touched: set[Panel] = set()
        self._steps: list[news.StepsCame] = []
        self._soon = False
        self._notice_until_s = 0.0
        self._reports: dict[int, dict[str, object] | None] = {}
        self._keys, self._key_problems = table.by_key(keys or {})
        self.theme = "ansi-light" if palette == "light" else "ansi-dark"

    # --- composing ---

    def compose(self) -> ComposeResult:
        yield Header(id=Panel.HEADER.value)
        yield MetersRow(id=Panel.METERS.value)
        self.loss, self.queue = LossPanel(), QueuePanel()
        self.versions, self.machine = VersionsPanel(), MachinePanel()
        self.events_panel, self.inspector = EventsPanel(), InspectorPanel()
        self.extra = ExtraChart()
        with Container(id="body"):
            for panel in (
                self.loss, self.extra, self.versions, self.inspector, self.queue, self.machine,
                self.events_panel,
            ):  # fmt: skip
                panel.add_class("panel")
                yield panel
        self.statusline = StatusLine()
        yield self.statusline
        yield Footer()
        yield Card(id="card")

    def on_mount(self) -> None:
        self.set_interval(PAINT_S, self._tick)
        self.run_worker(self.feed.run(), group="feed", exit_on_error=True)
        self._mouse(on=True)
        for problem in (*self._key_problems, self.first_words):
            if problem:
                self.say(problem, "warn")

    # --- news ---

    @property
    def dimmed(self) -> bool:
        return isinstance(self.view.link, Lost)

    def now_s(self) -> float:
        return clock.monotonic_s()

    def hear(self, item: news.News) -> None:
        """Take news in. Steps wait for the next tick; the rest is painted soon."""
        if isinstance(item, news.StepsCame):
            self._steps.append(item)
            return
        was = self.view.link
        self.view, touched = news.reduce(self.view, item)
        self._touched |= touched
        if isinstance(item, news.JobsChangedCame) and news.places_have_gaps(self.view.jobs):
            self.feed.again("jobs")
        routine = isinstance(item, news.StatusCame) and isinstance(was, Live)
        if not routine and not self._soon:
            self._soon = True
            self.set_timer(SOON_S, self._paint)

    def _tick(self) -> None:
        self._ticks += 1
        if self._steps:
            steps = tuple(step for item in self._steps for step in item.steps)
            last = self._steps[-1].at_s
            self._steps.clear()
            self.view, touched = news.reduce(self.view, news.StepsCame(steps, last))
            self._touched |= touched
        if self._ticks % 10 == 0:
            self.bytes_per_s = (self._written - self._written_before) / (10 * PAINT_S)
            self._written_before = self._written
        if self.statusline.notice and self.now_s() > self._notice_until_s:
            self.statusline.notice = None
        self._touched.add(Panel.STATUS)
        self._paint()

    def _paint(self) -> None:
        """Repaint what was touched, in one frame."""
        self._soon = False
        touched, self._touched = self._touched, set()
        if not self.is_mounted or not self._root.is_attached:
            return
        names = {panel.value for panel in touched}
        if Panel.LOSS in touched:
            names |= {"extra", "card"}
        if Panel.STATUS in touched or Panel.QUEUE in touched:
            names.add("footer")
        with self.batch_update():
            for widget in self._root.query(Canvas):
                if widget.id in names and widget.display:
                    widget.repaint()

    @property
    def _root(self) -> Screen[object]:
        return self.screen_stack[0]

    def repaint_everything(self) -> None:
        for widget in self._root.query(Canvas):
            widget.repaint()
        self.refresh(repaint=True, layout=True)
        self._mouse(self.mouse_on)

    def say(self, text: str, role: str = "") -> None:
        """Show the answer to what was just done, for a few seconds."""
        self.statusline.notice = (text, role)
        self._notice_until_s = self.now_s() + NOTICE_S
        self.statusline.repaint()

    # --- keys ---

    def on_key(self, event: events.Key) -> None:
        if len(self.screen_stack) > 1:
            return
        if self.finding is not None:
            self._find_key(event)
            event.stop()
            event.prevent_default()
            return
        key = event.character if event.character and event.character.isprintable() else event.key
        action = table.for_key(key, self._focus(), self._keys)
        if action is None and key != event.key:
            action = table.for_key(event.key, self._focus(), self._keys)
        if action is not None:
            event.stop()
            event.prevent_default()
            self.act(action)

    def on_paste(self, event: events.Paste) -> None:
        """Pasted text is never a key; while finding it is the text to find."""
        if self.finding is not None:
            self._set_finding(
                self.finding + event.text.splitlines()[0] if event.text else self.finding
            )
        else:
            self.say("pasted text is ignored here: it could press keys", "dim")
        event.stop()

    def begin_find(self) -> None:
        panel = self.focused_panel()
        if panel is None:
            return
        self._set_finding(panel.found)

    def _set_finding(self, text: str | None, keep: bool = True) -> None:
        self.finding = text
        panel = self.focused_panel()
        if panel is not None:
            panel.find(text or "" if text is not None or not keep else panel.found)
        self.statusline.notice = None
        self.statusline.repaint()

    def _find_key(self, event: events.Key) -> None:
        text = self.finding or ""
        if event.key == "enter":
            self._set_finding(None)
        elif event.key == "escape":
            self._set_finding(None, keep=False)
        elif event.key == "backspace":
            self._set_finding(text[:-1])
        elif event.character is not None and event.character.isprintable():
            self._set_finding(text + event.character)

    # --- focus, zoom, overlays ---

    def _focus(self) -> Panel | None:
        focused = self._root.focused
        return Panel(focused.id) if isinstance(focused, FramedPanel) and focused.id else None

    def focused_panel(self) -> FramedPanel | None:
        focused = self._root.focused
        return focused if isinstance(focused, FramedPanel) else None

    def panel(self, panel: Panel) -> FramedPanel:
        return self._root.query_one(f"#{panel.value}", FramedPanel)

    def focus_panel(self, panel: Panel) -> None:
        """Focus it; where the layout has no room for it, it is laid over the others."""
        widget = self.panel(panel)
        solo = self._root.query("#body > .-solo")
        if solo and widget not in solo:
            self._solo(None)
        if not widget.display:
            self._solo(widget)
        widget.focus()
        self.selection_changed()

    def toggle_panel(self, panel: Panel) -> None:
        widget = self.panel(panel)
        if widget.has_class("-solo"):
            self.go_back()
        else:
            self.focus_panel(panel)

    def toggle_zoom(self) -> None:
        body = self._root.query_one("#body")
        self._solo(None if body.has_class("solo") else self.focused_panel())

    def _solo(self, widget: FramedPanel | None) -> None:
        body = self._root.query_one("#body")
        with self.batch_update():
            body.set_class(widget is not None, "solo")
            for panel in body.query(".panel"):
                panel.set_class(panel is widget, "-solo")

    def go_back(self) -> None:
        """One step back: a drag, an overlay, a filter, the cursor, the strip, the reply."""
        panel = self.focused_panel()
        body = self._root.query_one("#body")
        if self.queue.drag is not None:
            self.queue.end_drag()
        elif body.has_class("solo"):
            shown = (
                self._subject_panel if self._subject_panel is not Panel.VERSIONS else Panel.QUEUE
            )
            self._solo(None)
            self.call_after_refresh(self._refocus, shown)
        elif panel is not None and panel.found:
            panel.find("")
        elif self.loss.look.cursor is not None:
            self.loss.set_look(cursor=None)
        elif self.view.away:
            self.hear(news.AwayRead())
        else:
            self.statusline.notice = None
            self.statusline.repaint()

    def _refocus(self, panel: Panel) -> None:
        focused = self._root.focused
        if focused is None or not focused.display:
            target = self.panel(panel)
            (target if target.display else self.queue).focus()

    # --- selection ---

    _subject_panel: Panel = Panel.QUEUE

    def situation(self) -> Situation:
        focus = self._focus()
        return Situation(
            view=self.view,
            focus=focus,
            job=self.queue.job,
            version=self.versions.version,
            read_only=self.read_only,
        )

    def subject(self) -> Job | Version | Said | None:
        """What the inspector is about: the selection of the list used last."""
        match self._subject_panel:
            case Panel.VERSIONS:
                return self.versions.version
            case Panel.EVENTS:
                return self.events_panel.event
            case _:
                return self.queue.job

    def selection_changed(self) -> None:
        focus = self._focus()
        if focus in (Panel.QUEUE, Panel.VERSIONS, Panel.EVENTS):
            self._subject_panel = focus
        if self.inspector.display:
            self.inspector.repaint()
        self._root.query_one("#footer", Footer).repaint()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        self.selection_changed()

    def report_of(self, job_id: int) -> dict[str, object] | None:
        """The data report, if it was read; asks for it otherwise."""
        if job_id not in self._reports:
            self._reports[job_id] = None
            if len(self._reports) > 50:
                self._reports.pop(next(iter(self._reports)))
            self.run_worker(self._read_report(job_id), group="look")
        return self._reports.get(job_id)

    async def _read_report(self, job_id: int) -> None:
        from trainer_tui.tui.remote import Declined

        try:
            answer = await self.backend.get(f"/v1/jobs/{job_id}/report")
            found = msgspec.json.decode(answer)
        except (NoDaemon, Declined, msgspec.DecodeError):
            return
        if isinstance(found, dict):
            self._reports[job_id] = found
            self.inspector.repaint()

    def chart_window_changed(self, look: Look) -> None:
        """Read the points of the new window; the ones at hand are shown meanwhile."""
        self.feed.again("metrics")

    # --- the terminal ---

    def _mouse(self, on: bool) -> None:
        """Button motion only: Textual's any-motion mode costs 240 kB/s under a moving mouse."""
        self.mouse_on = on
        if self._driver is not None and not self.is_headless:
            self._driver.write(MOUSE_QUIET if on else MOUSE_OFF)
            self._driver.flush()

    def toggle_mouse(self) -> None:
        self._mouse(not self.mouse_on)
        self.say(
            f"mouse {'on' if self.mouse_on else 'off: the terminal selects; m brings it back'}",
            "dim",
        )

    def toggle_theme(self) -> None:
        self.palette = "light" if self.palette == "dark" else "dark"
        for widget in self._root.query(Canvas):
            widget.repaint()

    def save_picture(self) -> Path:
        return save_picture(self, self.pictures_folder)

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if type(renderable) is ChopsUpdate:
            renderable = ThriftyUpdate.of(renderable, self._count_bytes)
        super()._display(screen, renderable)

    def _count_bytes(self, count: int) -> None:
        self._written += count
