"""Deeds on what is kept: the lineage, emergency backups, the trash, copies elsewhere. See `deeds`.

Invariant: a list is the daemon's answer of this moment, so nothing is chosen that has gone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.deeds_versions import files_since, going_back, learnt_words, went_back
from trainer_tui.tui.view import Version

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

NAMES_SHOWN = 12
_VERSION = re.compile(r"v(\d{1,9})(?:_|$)")


async def _read(app: TrainerApp, path: str, key: str = "") -> Any:
    """The daemon's document, or what it has under `key` as a list of objects."""
    found = msgspec.json.decode(await app.backend.get(path))
    if not key:
        return found if isinstance(found, dict) else {}
    listed = found.get(key) if isinstance(found, dict) else None
    return [item for item in listed or [] if isinstance(item, dict)]


def version_number(name: str) -> int | None:
    """Of a folder's name: `v003_20261124` is 3."""
    found = _VERSION.match(name)
    return int(found[1]) if found else None


# --- where the model comes from ---


async def show_lineage(app: TrainerApp) -> None:
    drawing = (await _read(app, "/v1/versions/lineage")).get("drawing") or []
    lines = [printable(str(line), 200) for line in drawing]
    await app.show_page("Lineage: newest on top", lines or ["Nothing has been committed yet."])


async def restore_emergency(app: TrainerApp) -> None:
    """What a restore replaced, once more."""
    found = await _read(app, "/v1/versions/emergencies", "emergencies")
    if not found:
        app.say("no restore has been made: there is nothing to go back to", "dim")
        return
    items = [emergency_words(item) for item in found]
    chosen = await app.pick("What was there before a restore", items, "It is asked about again.")
    if chosen is None:
        return
    entry = found[chosen]
    if entry.get("state") != "ok":
        why = printable(str(entry.get("problem") or entry.get("state")), 60)
        app.say(f"{app.glyphs.cross} {printable(str(entry.get('name')), 40)}: {why}", "bad")
        return
    path = f"/v1/versions/emergencies/{entry['number']}"
    lost, unknown = await files_since(app, path)
    words = [
        "".join(items[chosen]),
        f"Step {figures.count(app.view.training.global_step)} now, {_step(entry)} then.",
        *learnt_words(lost, unknown),
        "What is trained now is saved first, and can be brought back the same way.",
    ]
    wish = await going_back(app, f"Go back to {entry.get('name')}?", words, len(lost))
    if wish is None:
        return
    app.say("restoring…", "dim")
    reply = await app.change("POST", f"{path}/restore", wish)
    went_back(app, f"the model is what it was at step {_step(entry)}", reply)


def emergency_words(entry: dict[str, Any]) -> tuple[str, str]:
    state = entry.get("state")
    trouble = "" if state == "ok" else f" {str(state).upper()}"
    at = entry.get("at")
    when = f"{figures.day(at)}, " if isinstance(at, str) else ""
    why = entry.get("why")
    return (
        f"step {_step(entry)}{trouble}",
        f"{when}{f'before {why}' if why else 'before a restore'}",
    )


def _step(entry: dict[str, Any]) -> str:
    step = entry.get("global_step")
    return figures.count(step if isinstance(step, int) else None)


# --- the trash ---


async def undelete_version(app: TrainerApp) -> None:
    """The trash keeps a version until its time is up."""
    found = await _read(app, "/v1/versions/trash", "trashed")
    kept = [(item, number) for item in found
            if (number := version_number(str(item.get("name")))) is not None]  # fmt: skip
    if not kept:
        app.say("no deleted version is in the trash", "dim")
        return
    items = [(str(item.get("name")), trash_words(item)) for item, _ in kept]
    chosen = await app.pick("Bring a version back", items, "It stands where it stood before.")
    if chosen is None:
        return
    number = kept[chosen][1]
    await app.change("POST", f"/v1/versions/{number}/undelete")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{number:03d} is back", "good")


def trash_words(item: dict[str, Any]) -> str:
    until, at = item.get("keep_until"), item.get("deleted_at")
    parts = [
        f"deleted {figures.day(at)}" if isinstance(at, str) else "",
        str(item.get("why") or ""),
    ]
    parts.append(f"kept until {figures.day(until)}" if isinstance(until, str) else "")
    return ", ".join(part for part in parts if part)


# --- copies elsewhere ---


async def export_version(app: TrainerApp) -> None:
    """A folder that another machine loads, anywhere the daemon may write."""
    version = app.situation().version
    assert version is not None, "checked by the action"
    question = "A new folder on the daemon's machine, as an absolute path:"
    text = await app.ask(f"Export v{version.number:03d}", question, str(_suggested(version)))
    if not text:
        return
    options = [
        ("w", "the model", "weights, configuration, tokenizer: what inference needs", None),
        ("o", "and the optimizer", "so that training can go on from it elsewhere",
         "it was kept without its optimizer" if version.weights_only else None),
    ]  # fmt: skip
    choice = await app.choose(f"Export v{version.number:03d}", options, printable(text, 200))
    if choice is None:
        return
    path = str(Path(text).expanduser().absolute())
    app.say(f"copying v{version.number:03d}…", "dim")
    answer = await app.change(
        "POST", f"/v1/versions/{version.number}/export", {"path": path, "optimizer": choice == "o"}
    )
    where = answer.get("path") if isinstance(answer, dict) else None
    app.say(
        f"{app.glyphs.check} v{version.number:03d} is in {printable(str(where or path))}", "good"
    )


def _suggested(version: Version) -> Path:
    return Path.home() / (version.name or f"v{version.number:03d}")


async def back_up(app: TrainerApp) -> None:
    """Begun, not waited for: it may take hours."""
    found = await app.change("POST", "/v1/backup", {"wait": False})
    where = printable(str(found.get("location")), 60) if isinstance(found, dict) else ""
    app.say(f"{app.glyphs.check} copying the versions to {where} · : backup shows how far", "good")


async def show_backup(app: TrainerApp) -> None:
    await app.show_page("Second location", backup_lines(await _read(app, "/v1/backup")))


def backup_lines(found: dict[str, Any]) -> list[str]:
    """The daemon's answer, one fact a line."""
    if not found.get("location"):
        return [
            "There is no second location.",
            "Set versioning.second_location to a folder on another disk;",
            "every version is then copied there and read back.",
        ]
    lines = [printable(str(found["location"]), 200), ""]
    if found.get("problem"):
        lines.append(f"✕ cannot be used: {printable(str(found['problem']), 200)}")
    if found.get("same_disk"):
        lines.append("! the same disk as the models: a bad disk takes both")
    size, free = figures.size(found.get("bytes")), figures.size(found.get("free_bytes"))
    lines.append(f"{'there':<10} {len(found.get('copied') or [])} versions, {size}; {free} free")
    for name, key in (("missing", "missing"), ("begun", "partial")):
        names = [str(item) for item in found.get(key) or []]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        lines.append(f"{name:<10} {printable(', '.join(names[:NAMES_SHOWN]), 400) or '–'}{more}")
    last_at = found.get("last_run_at")
    lines.append(f"{'last run':<10} {figures.day(last_at) if isinstance(last_at, str) else '–'}")
    last = found.get("last") or {}
    for problem in [last.get("problem"), *(last.get("problems") or ())]:
        if problem:
            lines.append(f"  {printable(str(problem), 200)}")
    if found.get("running"):
        at = found.get("copying") or {}
        done = f"{figures.size(at.get('copied_bytes'))} of {figures.size(at.get('bytes'))}"
        now = f"{printable(str(at.get('version')), 40)}: {done}" if at else "looking"
        lines.append(f"{'now':<10} {now}")
    return lines


async def fetch_version(app: TrainerApp) -> None:
    """One that is lost or damaged here, from the second location."""
    found = await _read(app, "/v1/backup")
    names = [str(name) for name in found.get("copied") or []]
    known = [(name, number) for name in names if (number := version_number(name)) is not None]
    if not known:
        app.say("the second location has no version; : backup shows it", "dim")
        return
    whole = {version.number for version in app.view.versions if version.state == "ok"}
    items = [(name, "here, too" if number in whole else "not here") for name, number in known]
    chosen = await app.pick("Fetch a version", items, "An intact one is not replaced.")
    if chosen is None:
        return
    app.say("copying it back…", "dim")
    await app.change("POST", f"/v1/backup/fetch/{known[chosen][1]}")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} {printable(known[chosen][0], 40)} is back and intact", "good")
