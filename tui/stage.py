"""Where things stand: focus, zoom, overlays, and what the inspector is about.

Invariant: at most one panel is laid over the others (`-solo`); going back shows the same layout
as before.
"""

from __future__ import annotations

import msgspec
from textual import events
from textual.screen import Screen

from trainer_tui.safety.errors import NoDaemon, TrainerTuiError
from trainer_tui.tui import checkup
from trainer_tui.tui import reduce as news
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.hands import Hands
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.events import EventsPanel
from trainer_tui.tui.panels.footer import Footer
from trainer_tui.tui.panels.inspector import InspectorPanel
from trainer_tui.tui.panels.loss import LossPanel
from trainer_tui.tui.panels.queue import QueuePanel
from trainer_tui.tui.panels.statusline import StatusLine
from trainer_tui.tui.panels.versions import VersionsPanel
from trainer_tui.tui.remote import Declined
from trainer_tui.tui.situation import Situation
from trainer_tui.tui.view import Job, Panel, Said, Version

REPORTS_KEPT = 50


class Stage(Hands):
    """The app's panels and which of them is looked at."""

    loss: LossPanel
    queue: QueuePanel
    versions: VersionsPanel
    events_panel: EventsPanel
    inspector: InspectorPanel
    statusline: StatusLine

    def __init__(self) -> None:
        super().__init__()
        self._subject_panel = Panel.QUEUE
        self._before_solo: FramedPanel | None = None
        self._reports: dict[int, dict[str, object] | None] = {}
        self._incidents: dict[str, dict[str, object] | None] = {}
        self._examined = False

    @property
    def standing(self) -> bool:
        """Whether there is a screen to draw on: not before it is mounted, nor while leaving."""
        return self.is_running and bool(self.screen_stack) and self.root.is_attached

    @property
    def root(self) -> Screen[object]:
        """The screen below all dialogs."""
        return self.screen_stack[0]

    # --- focus, zoom, overlays ---

    def focus_now(self) -> Panel | None:
        focused = self.root.focused
        return Panel(focused.id) if isinstance(focused, FramedPanel) and focused.id else None

    def focused_panel(self) -> FramedPanel | None:
        focused = self.root.focused
        return focused if isinstance(focused, FramedPanel) else None

    def panel(self, panel: Panel) -> FramedPanel:
        return self.root.query_one(f"#{panel.value}", FramedPanel)

    def focus_panel(self, panel: Panel) -> None:
        """Focus it; where the layout has no room for it, it is laid over the others."""
        widget = self.panel(panel)
        solo = self.root.query("#body > .-solo")
        if solo and widget not in solo:
            self._solo(None)
        if not widget.display:
            self._before_solo = self.focused_panel() or self._before_solo
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
        body = self.root.query_one("#body")
        self._before_solo = self.focused_panel()
        self._solo(None if body.has_class("solo") else self._before_solo)

    def _solo(self, widget: FramedPanel | None) -> None:
        body = self.root.query_one("#body")
        with self.batch_update():
            body.set_class(widget is not None, "solo")
            for panel in body.query(".panel"):
                panel.set_class(panel is widget, "-solo")

    def go_back(self) -> None:
        """One step back: a drag, an overlay, a filter, the cursor, the strip, the reply."""
        panel = self.focused_panel()
        body = self.root.query_one("#body")
        if self.queue.drag is not None:
            self.queue.end_drag()
        elif body.has_class("solo"):
            self._solo(None)
            self.call_after_refresh(self._refocus)
        elif panel is not None and panel.found:
            panel.find("")
        elif self.loss.look.cursor is not None:
            self.loss.set_look(cursor=None)
        elif self.view.away:
            self.hear(news.AwayRead())
        else:
            self.statusline.notice = None
            self.statusline.repaint()

    def _refocus(self) -> None:
        """The focus goes back to where it was before the overlay."""
        before = self._before_solo
        (before if before is not None and before.display else self.queue).focus()

    # --- the doctor, once, on a first visit ---

    async def examine(self) -> tuple[Finding, ...]:
        """Ask the doctor. Raises Refused."""
        found = await checkup.examine(self.workspace)
        self.hear(news.FindingsCame(found))
        return found

    def examine_if_new(self) -> None:
        if not self._examined and self.view.is_new and self.workspace is not None:
            self.examine_again()

    def examine_again(self) -> None:
        """Beside everything else; a doctor that fails is told in its own place."""
        self._examined = True
        self.run_worker(self._examine_quietly(), group="doctor", exclusive=True)

    async def _examine_quietly(self) -> None:
        try:
            await self.examine()
        except TrainerTuiError as problem:
            text = Finding(level="fail", subject="doctor", text=problem.message, hint=problem.hint)
            self.hear(news.FindingsCame((text,)))

    # --- selection ---

    def situation(self) -> Situation:
        focus = self.focus_now()
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
                job = self.queue.job
                return self.view.in_hand(job) if job else None

    def selection_changed(self) -> None:
        focus = self.focus_now()
        if focus in (Panel.QUEUE, Panel.VERSIONS, Panel.EVENTS):
            self._subject_panel = focus
        if self.inspector.display:
            self.inspector.repaint()
        self.root.query_one("#footer", Footer).repaint()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        self.selection_changed()

    def report_of(self, job_id: int) -> dict[str, object] | None:
        """The data report, if it was read; asks for it otherwise."""
        if job_id not in self._reports:
            self._reports[job_id] = None
            if len(self._reports) > REPORTS_KEPT:
                self._reports.pop(next(iter(self._reports)))
            self.run_worker(self._read_report(job_id), group="look")
        return self._reports.get(job_id)

    async def _read_report(self, job_id: int) -> None:
        try:
            answer = await self.backend.get(f"/v1/jobs/{job_id}/report")
            found = msgspec.json.decode(answer)
        except (NoDaemon, Declined, msgspec.DecodeError):
            return
        if isinstance(found, dict):
            self._reports[job_id] = found
            self.inspector.repaint()

    # --- incidents ---

    @property
    def incidents_folder(self) -> str:
        status = self.view.status
        return f"{status.daemon.workspace}/state/incidents" if status else ""

    def incident_of(self, event: Said) -> dict[str, object] | None:
        """The evidence an event names, if it was read; asks for it otherwise."""
        name = event.data.get("incident") if isinstance(event.data, dict) else None
        if not isinstance(name, str):
            return None
        if name not in self._incidents:
            self._incidents[name] = None
            if len(self._incidents) > REPORTS_KEPT:
                self._incidents.pop(next(iter(self._incidents)))
            self.run_worker(self._read_incident(name), group="look")
        return self._incidents.get(name)

    async def _read_incident(self, name: str) -> None:
        try:
            found = msgspec.json.decode(await self.backend.get("/v1/incidents"))
        except (NoDaemon, Declined, msgspec.DecodeError):
            self._incidents.pop(name, None)
            return
        listed = found.get("incidents") if isinstance(found, dict) else None
        for incident in listed or []:
            if isinstance(incident, dict) and incident.get("id") == name:
                self._incidents[name] = incident
                self.inspector.repaint()
