"""Every action of the table by its key and by the palette, and every route of the API reached."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from trainer_tui.daemon.api import make_app
from trainer_tui.tui import actions
from trainer_tui.tui.commands import LISTED, Commands
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.panels.loss import Look
from trainer_tui.tui.view import Panel

sys.path.insert(0, str(Path(__file__).parent))
from deeds_table import BY_ITSELF, CHANGES, LOOKS, REASONS, Case, nothing

CASES = [*CHANGES, *LOOKS]


class Walk:
    """One screen for all cases, as new before each."""

    def __init__(self, on: Any) -> None:
        self.on, self.app, self.server = on, on.app, on.server
        self.changed = True  # since the daemon was as new
        on.page_text = self.page_text
        on.app.repainted = on.app.left = False
        repaint = on.app.repaint_everything
        on.app.repaint_everything = lambda: (repaint(), setattr(on.app, "repainted", True))
        on.app.exit = lambda *_: setattr(on.app, "left", True)

    def page_text(self) -> str:
        screen = self.app.screen
        return f"{getattr(screen, '_title', '')}\n{getattr(screen, '_body', '')}"

    async def close(self) -> None:
        while len(self.app.screen_stack) > 1:
            await self.on.pilot.press("escape")
            await self.on.pilot.pause()

    async def renew(self, case: Case) -> None:
        on, app = self.on, self.app
        await self.close()
        app._set_finding(None, keep=False)
        app._solo(None)
        events = app.events_panel
        events._older, events._reached, events.exhausted = (), 0, False
        app.loss.look = Look()
        app.feed.from_step = None
        app.statusline.notice, app.palette = None, "dark"
        app.mouse_on, app.repainted, app.left = True, False, False
        if self.changed or case.prepare is not nothing:
            await self.renew_daemon(case)
        self.changed = case.request is not None or case.prepare is not nothing
        for panel in (app.queue, app.versions, app.events_panel):
            panel._key, panel._index, panel._top, panel._filter = None, 0, 0, ""
            panel.changed()
        app.queue.focus()
        await on.pilot.pause()
        for key in case.before:
            await on.press(key)

    async def renew_daemon(self, case: Case) -> None:
        on, app, state = self.on, self.app, self.server.state
        with state.lock:
            state.renew()
            case.prepare(state)
            wanted = state.revision
        await on.until(lambda: app.view.status.revision == wanted, "the new status")
        await on.until(lambda: "/v1/config" in state.reads, "all is read again")
        await on.until(lambda: len(app.view.jobs) == len(state.jobs), "the jobs")

    async def answer(self, case: Case) -> None:
        on = self.on
        for text in case.answers:
            await on.until(lambda: on.dialog, f"{case.action}: asks")
            asking = on.dialog
            typed = asking.query("Input, OptionList")
            if typed and text:
                typed.first().value = text
            await on.pilot.press(*(["enter"] if typed else [text]))
            await on.until(lambda a=asking: self.app.screen is not a, f"{case.action}: answered")

    async def came_true(self, case: Case) -> None:
        on = self.on
        if case.request is None:
            await on.until(lambda: case.check(on), f"{case.action} {case.name} is seen")
            return
        method, path, body = case.request
        await on.until(on.asked, f"{case.action} reaches the daemon")
        await on.settled()
        assert on.asked()[0][:2] == (method, path), case
        sent = on.asked()[0][2]
        assert {k: sent.get(k) for k in body} == body, case
        assert len(on.asked()) == 1, case
        await on.until(lambda: on.text("statusline").strip(), "an answer is shown")

    def requests(self) -> set[tuple[str, str]]:
        asked = {(method.lower(), path) for method, path, _ in self.on.asked()}
        return asked | {("get", path) for path in self.server.state.reads}


@pytest.fixture
def walk(server: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def doctor(_: object) -> tuple[Finding, ...]:
        return (Finding(level="ok", subject="python", text="3.11"),)

    monkeypatch.setattr("trainer_tui.tui.checkup.examine", doctor)
    monkeypatch.setattr("trainer_tui.tui.picture.png", lambda text: b"")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return lambda: stage(server, pictures_folder=tmp_path, workspace=tmp_path)


def template_of(path: str, templates: list[str]) -> str | None:
    """The route that serves the path; one without parameters goes first."""
    for template in sorted(templates, key=lambda text: (text.count("{"), text)):
        pattern = re.sub(r"\{name[^}]*\}", ".+", re.sub(r"\{(?!name)[^}]*\}", "[^/]+", template))
        if re.fullmatch(pattern, path):
            return template
    return None


async def test_every_action_by_the_palette_and_every_route_is_reached(walk: Any) -> None:
    routes = {
        (method, path)
        for path, found in make_app(MagicMock()).openapi()["paths"].items()
        for method in found
    }
    templates = [path for _, path in routes]
    reached: set[tuple[str, str]] = set()
    async with walk() as on:
        walked = Walk(on)
        for case in CASES:
            await walked.renew(case)
            action = actions.BY_ID[case.action]
            if action in LISTED:
                provider = Commands(on.app.screen)
                hits = [hit async for hit in provider.search(action.help)]
                best = max(hits, key=lambda hit: hit.score)
                assert best.text == action.help
                best.command()
            else:
                assert action.id.startswith("panel_"), "only these are left out of the palette"
                on.app.act(action)
            await walked.answer(case)
            await walked.came_true(case)
            for method, path in walked.requests():
                reached.add((method, template_of(path, templates) or path))
    done = {case.action for case in CASES}
    assert done == set(actions.BY_ID), "every action has a case"
    assert reached - routes == set(), "the fake serves nothing that the daemon does not"
    by_hand = routes - set(REASONS) - BY_ITSELF
    assert by_hand - reached == set(), "no action asks for these: build one, or say why not"
    assert set(REASONS) - routes == set() and not set(REASONS) & reached


async def test_every_key_does_what_its_action_says(walk: Any) -> None:
    table, problems = actions.by_key({})
    assert problems == []
    async with walk() as on:
        walked = Walk(on)
        for case in (case for case in CASES if not case.name):
            action = actions.BY_ID[case.action]
            if not action.keys:
                continue
            await walked.renew(case)
            if action.scope is not None and on.app.focus_now() is not action.scope:
                await on.press(str(list(Panel).index(action.scope) - 1))
            await on.pilot.press(action.keys[0])
            await walked.answer(case)
            await walked.came_true(case)
            for key in action.keys:
                assert actions.for_key(key, action.scope, table) is action, key


def test_the_palette_says_why_not(walk: Any) -> None:
    """Every action that can be refused has a reason in words."""
    from trainer_tui.tui.situation import Situation

    began_s = time.monotonic()
    for action in actions.ACTIONS:
        reason = action.why_not(Situation(read_only=True))
        assert (reason is not None) >= action.changes, action.id
        assert reason is None or (reason and reason[0] != reason[0].upper()), action.id
    assert time.monotonic() - began_s < 5
