"""The screen: composes the panels, feeds them, and turns keys into actions.

Invariant: the screen changes nothing by itself. News are reduced at once and painted at most
once a second (at once for what a person did), so a still training writes nothing.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from rich.console import RenderableType
from textual import events
from textual._compositor import ChopsUpdate
from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.timer import Timer

from trainer_tui.safety import clock
from trainer_tui.tui import actions as table
from trainer_tui.tui import reduce as news
from trainer_tui.tui import signals
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.commands import Commands
from trainer_tui.tui.feed import Feed
from trainer_tui.tui.glyphs import Glyphs, choose
from trainer_tui.tui.ink import PALETTES
from trainer_tui.tui.panels.card import Card
from trainer_tui.tui.panels.events import EventsPanel
from trainer_tui.tui.panels.extra import ExtraChart
from trainer_tui.tui.panels.footer import Footer
from trainer_tui.tui.panels.header import Header, window_title
from trainer_tui.tui.panels.inspector import InspectorPanel
from trainer_tui.tui.panels.loss import Look, LossPanel, window_of
from trainer_tui.tui.panels.machine import MachinePanel
from trainer_tui.tui.panels.meters import MetersRow
from trainer_tui.tui.panels.queue import QueuePanel
from trainer_tui.tui.panels.statusline import StatusLine
from trainer_tui.tui.panels.versions import VersionsPanel
from trainer_tui.tui.remote import Backend
from trainer_tui.tui.stage import Stage
from trainer_tui.tui.thrift import ThriftyUpdate
from trainer_tui.tui.view import (
    ALL_PANELS,
    Live,
    Lost,
    Panel,
    ScreenSettings,
    Step,
    View,
)

PAINT_S = 1.0
SOON_S = 0.05
NOTICE_S = 8.0
ALONE_S = 3.0
DISK_TICKS = 60  # how often the disk's forecast is read
BURST_S = 0.012
WIDEST = 190  # columns from which the second chart is shown
REST_S = 0.15
STEPS_WAITING = 64  # of a flood no more than these wait for the next painting
MOUSE_QUIET = "\x1b[?1003l\x1b[?1002h"
MOUSE_OFF = "\x1b[?1003l\x1b[?1002l\x1b[?1000l"


class TrainerApp(Stage):
    """The control centre. `backend` is a daemon; tests hand in a fake or a real one.

    Args:
        seen: last event id of the visit before; what came later is summed up.
        workspace: what the doctor looks at when it is a new one; None: it is not asked.
        actor: who this is, for the undo log and for other viewers.
    """

    TITLE = "trainer-tui"
    CSS_PATH = ["styles/layout.tcss", "styles/dialogs.tcss"]  # noqa: RUF012
    COMMANDS = {Commands}  # noqa: RUF012
    COMMAND_PALETTE_BINDING = "ctrl+p"
    AUTO_FOCUS = "#queue"
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-tiny"), (60, "-slim"), (80, "-narrow"), (112, "-wide"), (150, "-wider"),
        (WIDEST, "-widest"),
    ]  # fmt: skip
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (15, "-low"), (20, "-even"), (32, "-tall")]  # noqa: RUF012

    def __init__(
        self,
        backend: Backend,
        *,
        palette: str = "dark",
        glyphs: Glyphs | None = None,
        read_only: bool = False,
        actor: str = "screen",
        seen: int | None = None,
        pictures_folder: Path | None = None,
        workspace: Path | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.palette = palette if not self.no_color else "mono"
        self.glyphs = glyphs or choose()
        self.read_only = read_only
        self.actor = actor
        self.pictures_folder = pictures_folder or Path.cwd()
        self.workspace = workspace
        self.view = View()
        self.feed = Feed(backend, self.hear, seen)
        self.finding: str | None = None
        self.bytes_per_s = 0.0
        self.mouse_on = True
        self._had_terminal = False
        self._pressed: list[events.Key] = []
        self._at_rest: Timer | None = None
        self._written = 0
        self._written_before = 0
        self._ticks = 0
        self._touched: set[Panel] = set()
        self._steps: list[Step] = []
        self._steps_at_s = 0.0
        self._soon = False
        self._notice_until_s = 0.0
        self._keys, _ = table.by_key({})
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
        self.app_resume_signal.subscribe(self, lambda _: self._mouse(self.mouse_on))
        self.run_worker(self.feed.run(), group="feed", exit_on_error=True)
        self.set_class(not self.glyphs.braille, "-ascii")
        self._mouse(on=True)
        self._had_terminal = not self.is_headless and os.isatty(0)
        self.to_terminal(signals.SAVE_TITLE)

    # --- news ---

    @property
    def dimmed(self) -> bool:
        return isinstance(self.view.link, Lost)

    def now_s(self) -> float:
        return clock.monotonic_s()

    def hear(self, item: news.News) -> None:
        """Take news in. Steps wait for the next tick; the rest is painted soon."""
        if isinstance(item, news.StepsCame):
            self._steps.extend(item.steps)
            self._steps_at_s = item.at_s
            if len(self._steps) >= STEPS_WAITING:
                self._take_steps()
            return
        if isinstance(item, news.SettingsCame):
            self._take_settings(item.settings)
        was = self.view
        self.view, touched = news.reduce(self.view, item)
        self._touched |= touched
        if isinstance(item, news.JobsChangedCame) and news.places_have_gaps(self.view.jobs):
            self.feed.again("jobs")
        if isinstance(item, news.SettingsCame):  # the last of a snapshot
            self.examine_if_new()
        self._tell_outside(was, item)
        routine = (
            isinstance(item, news.StatusCame)
            and isinstance(was.link, Live)
            and was.training.state == self.view.training.state
        )
        if isinstance(item, news.MetricsCame):  # somebody waits for them: a zoom, a rollback
            self.call_next(self._paint)
        elif not routine and not self._soon:
            self._soon = True
            self.set_timer(SOON_S, self._paint)

    def _tell_outside(self, was: View, item: news.News) -> None:
        """The window's title when the state changes; a call when it is bad and nobody looks."""
        if (words := window_title(self.view)) != window_title(was) or was.status is None:
            self.to_terminal(signals.title(words))
        if isinstance(item, news.SaidCame) and item.said.level == "error" and not self.app_focus:
            self.to_terminal(signals.notification(item.said.text, os.environ))

    def _take_settings(self, settings: ScreenSettings) -> None:
        """The person's own keys and colours, as the daemon read them from config.toml."""
        self._keys, problems = table.by_key(settings.keys)
        self.read_only = self.read_only or settings.read_only
        if settings.theme in PALETTES and not self.no_color and settings.theme != self.palette:
            self.palette = settings.theme
            self._touched |= ALL_PANELS
        for problem in problems:
            self.say(problem, "warn")

    def _leave_if_alone(self) -> None:
        """End when the terminal is gone without a SIGHUP; the input thread would spin on it."""
        if self._had_terminal and not os.isatty(0):
            self._had_terminal = False
            self.exit()
            alone = threading.Timer(ALONE_S, os._exit, (1,))  # writing to it may never return
            alone.daemon = True
            alone.start()

    def _tick(self) -> None:
        self._ticks += 1
        self._leave_if_alone()
        if self._steps:
            self._take_steps()
        if self._ticks % 10 == 0:
            self.bytes_per_s = (self._written - self._written_before) / (10 * PAINT_S)
            self._written_before = self._written
        if self._ticks % DISK_TICKS == 2 and isinstance(self.view.link, Live):
            self.feed.again("disk")
        if self.statusline.notice and self.now_s() > self._notice_until_s:
            self.statusline.notice = None
        self._touched.add(Panel.STATUS)
        self._paint()

    def _take_steps(self) -> None:
        came = news.StepsCame(tuple(self._steps), self._steps_at_s)
        self._steps.clear()
        self.view, touched = news.reduce(self.view, came)
        self._touched |= touched

    def _paint(self) -> None:
        """Repaint what was touched, in one frame."""
        self._soon = False
        touched, self._touched = self._touched, set()
        if not self.standing:
            return
        names = {panel.value for panel in touched}
        if Panel.LOSS in touched:
            names |= {"extra", "card"}
        if Panel.STATUS in touched or Panel.QUEUE in touched:
            names.add("footer")
        with self.batch_update():
            for widget in self.root.query(Canvas):
                if widget.id in names and widget.display:
                    widget.repaint()

    def repaint_everything(self) -> None:
        if not self.standing:
            return
        for widget in self.root.query(Canvas):
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
        """Keys wait 12 ms, so that text pasted without brackets is known before it acts."""
        if len(self.screen_stack) > 1:
            return
        event.stop()
        event.prevent_default()
        if self.finding is not None:
            self._find_key(event)
            return
        self._pressed.append(event)
        if len(self._pressed) == 1:
            self.set_timer(BURST_S, self._take_keys)

    def _take_keys(self) -> None:
        pressed, self._pressed = self._pressed, []
        if not self.standing:
            return
        if looks_pasted([event.character or "" for event in pressed]):
            self.say(f"{len(pressed)} keys at once look like pasted text: ignored", "warn")
            return
        for event in pressed:
            self._press(event)

    def _press(self, event: events.Key) -> None:
        if self.finding is not None:  # begun by a key just before
            self._find_key(event)
            return
        key = event.character if event.character and event.character.isprintable() else event.key
        focus = self.focus_now()
        action = table.for_key(key, focus, self._keys)
        if action is None and key != event.key:
            action = table.for_key(event.key, focus, self._keys)
        if action is not None:
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
            if text and self.focus_now() is Panel.EVENTS:
                self.do("older")  # the daemon knows more of them
        elif event.key == "escape":
            self._set_finding(None, keep=False)
        elif event.key == "backspace":
            self._set_finding(text[:-1])
        elif event.character is not None and event.character.isprintable():
            self._set_finding(text + event.character)

    def chart_window_changed(self, look: Look) -> None:
        """Read the points of the new window; the ones at hand are shown meanwhile."""
        low, _ = window_of(look, self.view.curves)
        self.feed.from_step = None if look.window is None else max(0, int(low))
        self.feed.again("metrics")

    # --- the terminal ---

    def on_resize(self, event: events.Resize) -> None:
        """Draw everything once the size is at rest. Textual leaves a size out that equals the one
        before, but on the way there the terminal has cut off what was drawn."""
        if self._at_rest is not None:
            self._at_rest.stop()
        self._at_rest = self.set_timer(REST_S, self.repaint_everything)
        wanted = event.size.width >= WIDEST
        if wanted and not self.feed.second_chart and self.view.curves:
            self.feed.again("metrics")
        self.feed.second_chart = wanted

    def _mouse(self, on: bool) -> None:
        """Button motion only: Textual's any-motion mode costs 240 kB/s under a moving mouse."""
        self.mouse_on = on
        self.to_terminal(MOUSE_QUIET if on else MOUSE_OFF)

    def action_help_quit(self) -> None:
        """What Textual does at ctrl+c; here it leaves, as `q` does."""
        self.exit()

    def toggle_mouse(self) -> None:
        self._mouse(not self.mouse_on)
        words = "on" if self.mouse_on else "off: the terminal selects; m brings it back"
        self.say(f"mouse {words}", "dim")

    def toggle_theme(self) -> None:
        self.palette = "light" if self.palette == "dark" else "dark"
        for widget in self.root.query(Canvas):
            widget.repaint()

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if type(renderable) is ChopsUpdate:
            renderable = ThriftyUpdate.of(renderable, self._count_bytes)
        super()._display(screen, renderable)

    def _count_bytes(self, count: int) -> None:
        self._written += count


def looks_pasted(characters: list[str]) -> bool:
    """Eight keys in one read, five of them different: no fingers, and no key held down."""
    return len(characters) >= 8 and len(set(characters)) >= 5
