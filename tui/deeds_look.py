"""Deeds that show a page: the doctor's findings, incidents, the disk. They change nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.panels.events import terms_of
from trainer_tui.tui.panels.incident import incident_lines
from trainer_tui.tui.view import History, Panel

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

PAGE_CELLS = 68
OLDER_READ = 300
READINGS = 40  # of a filter whose words are everywhere, but never together


async def show_doctor(app: TrainerApp) -> None:
    app.say("looking at this machine…", "dim")
    found = await app.examine()
    app.say("", "dim")
    await app.show_page("Doctor", doctor_lines(found))


def doctor_lines(found: tuple[Finding, ...]) -> list[str]:
    """Two lines a finding at most; the worst come first."""
    marks = {"ok": "✓", "note": "·", "fail": "✕"}
    lines = []
    for finding in found:
        mark = marks.get(finding.level, "·")
        lines.append(f"{mark} {finding.subject:<10} {printable(finding.text, 300)}")
        if finding.hint:
            lines.append(f"  {'':<10} → {printable(finding.hint, 300)}")
    return lines or ["Nothing was found."]


async def show_incidents(app: TrainerApp) -> None:
    answer = msgspec.json.decode(await app.backend.get("/v1/incidents"))
    found = answer.get("incidents") if isinstance(answer, dict) else None
    lines: list[str] = []
    for incident in found or []:
        rows = incident_lines(incident, app.incidents_folder, PAGE_CELLS)
        lines += ["".join(text for text, _ in row.spans) for row in rows]
        lines += ["", "─" * PAGE_CELLS]
    await app.show_page("Incidents", lines[:-2] or ["Nothing has gone wrong here."])


async def older_events(app: TrainerApp) -> None:
    """From before those that are known; with a filter, the next that match it, however old."""
    panel = app.events_panel
    app.focus_panel(Panel.EVENTS)
    for _ in range(READINGS):
        if panel.exhausted or (before := panel.oldest_id()) is None:
            break
        wanted = {"limit": OLDER_READ, "before": before, **terms_of(panel.found)}
        answer = await app.backend.get("/v1/history", wanted)
        found = msgspec.json.decode(answer, type=History).events
        if matches := panel.take_older(found, OLDER_READ):
            words = "event" if matches == 1 else "events"
            app.say(f"{matches} older {words}, back to {figures.day(found[-1].at)}", "dim")
            return
    app.say("there is nothing older" + (" that matches" if panel.found else ""), "dim")


async def picture(app: TrainerApp) -> None:
    from trainer_tui.tui.picture import svg

    await _save(app, svg(app), "trainer-tui")


async def chart_picture(app: TrainerApp) -> None:
    from trainer_tui.tui.picture import chart_svg

    await _save(app, chart_svg(app), "trainer-tui-loss")


async def _save(app: TrainerApp, text: str, name: str) -> None:
    from trainer_tui.tui.picture import save_picture

    try:
        files, missing = await asyncio.to_thread(save_picture, text, app.pictures_folder, name)
    except OSError as problem:
        raise Refused(f"{app.pictures_folder}: {problem.strerror}") from None
    names = " and ".join(file.name for file in files)
    where = printable(str(app.pictures_folder), 200)
    more = f" · {missing}" if missing else f" in {where}"
    app.say(f"{app.glyphs.check} saved {names}{more}", "good")


async def show_disk(app: TrainerApp) -> None:
    answer = msgspec.json.decode(await app.backend.get("/v1/disk"))
    await app.show_page("Disk", disk_lines(answer if isinstance(answer, dict) else {}))


def disk_lines(found: dict[str, Any]) -> list[str]:
    """Each fact of the daemon's answer as a line, sizes and times as people read them."""
    lines: list[str] = []
    for name, value in found.items():
        if (name, value) == ("place", "") or (name == "filesystems" and len(value) < 2):
            continue  # one disk is said by the other lines
        words = name.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, list):
            lines += ["", f"{words}:" if value else f"{words}: nothing"]
            lines += [f"  {printable(_item(item), 200)}" for item in value[:200]]
        elif name.endswith("_bytes"):
            lines.append(f"{words:<20} {figures.size(value)}")
        elif name.startswith("seconds"):
            left = "it does not fill" if value is None else figures.duration(value)
            lines.append(f"{'full in':<20} {left}")
        else:
            lines.append(f"{words:<20} {printable(str(value), 200)}")
    return lines


def _item(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    parts = [_part(name, value) for name, value in item.items() if value not in (None, "", [])]
    return "  ".join(parts)


def _part(name: str, value: Any) -> str:
    if name.startswith("seconds"):
        return f"full in {figures.duration(value)}"
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {figures.size(value)}"
    return figures.size(value) if name == "bytes" else str(value)
