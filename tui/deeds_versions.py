"""Deeds on versions: make, roll back, compare, pin, verify, delete. See `deeds`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.view import Panel, Training, Version

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


class Target(msgspec.Struct, frozen=True):
    """`GET /v1/versions/rollback`."""

    version: Version
    files_since: list[dict[str, Any]] = []
    files_since_problem: str | None = None


def _version(app: TrainerApp) -> Version:
    version = app.situation().version
    assert version is not None, "checked by the action"
    return version


async def show_versions(app: TrainerApp) -> None:
    app.toggle_panel(Panel.VERSIONS)


async def make_version(app: TrainerApp) -> None:
    text = await app.ask("Make a version", "What is it? One line, for the list of versions:")
    if text is None:
        return
    app.say("making a version…", "dim")
    made = await app.change("POST", "/v1/versions", {"description": text})
    number = made.get("number") if isinstance(made, dict) else None
    app.feed_again("versions")
    name = f"v{number:03d}" if isinstance(number, int) else "a version"
    app.say(f"{app.glyphs.check} made {name}", "good")


async def roll_back(app: TrainerApp) -> None:
    await _roll_back(app, {})


async def roll_back_weights(app: TrainerApp) -> None:
    await _roll_back(app, {"weights_only": True})


async def _roll_back(app: TrainerApp, how: dict[str, object]) -> None:
    version = _version(app)
    if version.state != "ok":
        app.say(f"v{version.number:03d} is {version.state}; choose another", "bad")
        return
    lost, unknown = await files_since(app, f"/v1/versions/{version.number}")
    words = rollback_words(app.view.training, version, lost, unknown)
    if how:
        words.append("The optimizer begins anew: its part of the version is left out.")
    wish = await going_back(app, f"Roll back to v{version.number:03d}?", words, len(lost))
    if wish is None:
        return
    app.say(f"rolling back to v{version.number:03d}…", "dim")
    reply = await app.change("POST", f"/v1/versions/{version.number}/restore", {**how, **wish})
    went_back(app, f"the model is v{version.number:03d} again", reply)


async def going_back(
    app: TrainerApp, title: str, words: list[str], files: int
) -> dict[str, object] | None:
    """Ask, also whether the files trained since shall wait again; None: leave it as it is."""
    also = f"queue the {'file' if files == 1 else f'{files} files'} again" if files else ""
    answer = await app.confirm_or_more(title, words, also)
    if answer is None:
        return None
    return {"requeue": True} if answer == "w" else {}


def went_back(app: TrainerApp, words: str, reply: Any) -> None:
    """Show the effect, with what the daemon has to add: what the state lacks, what waits again."""
    for what in ("versions", "metrics", "jobs"):
        app.feed_again(what)
    answer = reply if isinstance(reply, dict) else {}
    notes = [str(note) for note in (answer.get("restored") or {}).get("notes") or []]
    if waiting := len(answer.get("requeued") or []):
        notes.append("1 file waits again" if waiting == 1 else f"{waiting} files wait again")
    notes += [str(text) for text in answer.get("withdrawn") or []]
    notes += [str(problem) for problem in answer.get("not_requeued") or []]
    role = "warn" if answer.get("not_requeued") else "good"
    app.say("; ".join([f"{app.glyphs.check} {words}", *map(printable, notes)]), role)


async def roll_back_one(app: TrainerApp) -> None:
    """To the version before the state of now, whichever the daemon says that is."""
    found = msgspec.json.decode(await app.backend.get("/v1/versions/rollback"), type=Target)
    lost = [printable(str(item.get("name")), 24) for item in found.files_since]
    unknown = found.files_since_problem or ""
    words = rollback_words(app.view.training, found.version, lost, unknown)
    wish = await going_back(app, f"Roll back to v{found.version.number:03d}?", words, len(lost))
    if wish is None:
        return
    app.say(f"rolling back to v{found.version.number:03d}…", "dim")
    agreed = {"version": found.version.number, **wish}  # whatever is committed meanwhile
    reply = await app.change("POST", "/v1/versions/rollback", agreed)
    went_back(app, f"the model is v{found.version.number:03d} again", reply)


def rollback_words(
    training: Training, version: Version, lost: list[str], unknown: str
) -> list[str]:
    """What changes: steps, files, validation. `unknown`: why nobody can tell which files."""
    now, then = training.global_step, version.global_step
    lines = []
    if now is not None and then is not None and now > then:
        if version.lineage == training.lineage:
            lines.append(f"Steps {figures.count(then + 1)} to {figures.count(now)} are unlearnt.")
        else:
            lines.append(f"The model is again what it was at step {figures.count(then)}.")
    lines += learnt_words(lost, unknown)
    losses = figures.loss(training.val_loss), figures.loss(version.loss)
    lines.append(f"Validation loss: {losses[0]} now, {losses[1]} then.")
    if training.unsaved_steps:
        lines.append(f"{training.unsaved_steps} steps are not saved yet; they are saved first.")
    lines.append("Every version and checkpoint stays; the step count goes on from here.")
    return lines


def learnt_words(lost: list[str], unknown: str) -> list[str]:
    """What the model loses. `lost`: names of files. `unknown`: why they are not known."""
    lines = []
    if lost:
        names = ", ".join(lost[:4]) + (" and more" if len(lost) > 4 else "")
        lines.append(f"What was learnt from {names} goes with them.")
    if unknown:
        lines.append(f"Which files go with them is not known: {printable(unknown, 100)}.")
    return lines


async def files_since(app: TrainerApp, path: str) -> tuple[list[str], str]:
    """Names of the files that were trained after what stands there, or why nobody knows."""
    found = msgspec.json.decode(await app.backend.get(path))
    answer = found if isinstance(found, dict) else {}
    names = [printable(str(item.get("name")), 24) for item in answer.get("files_since") or []]
    return names, str(answer.get("files_since_problem") or "")


async def diff_version(app: TrainerApp) -> None:
    version = _version(app)
    older = [v for v in app.view.versions if v.number < version.number]
    if not older:
        app.say(f"v{version.number:03d} is the first", "dim")
        return
    before = max(older, key=lambda item: item.number)
    path = f"/v1/versions/diff/{before.number}/{version.number}"
    found = msgspec.json.decode(await app.backend.get(path))
    title = f"v{before.number:03d} → v{version.number:03d}"
    await app.show_page(title, diff_lines(before, version, found))


def diff_lines(before: Version, after: Version, found: dict[str, Any]) -> list[str]:
    """What is different between two versions, one fact a line. `found`: the daemon's answer."""
    lines = [
        f"steps    {figures.count(before.global_step)} → {figures.count(after.global_step)}",
        f"tokens   {figures.short_count(before.tokens)} → {figures.short_count(after.tokens)}",
        f"lineage  {before.lineage} → {after.lineage}",
    ]
    for name, change in sorted((found.get("validation") or {}).items()):
        a, b = change.get("first"), change.get("second")
        by = figures.signed(change.get("by"))
        lines.append(f"val {name:<8} {figures.loss(a)} → {figures.loss(b)}  {by}")
    for title, key in (("learnt in between", "only_second"), ("no longer learnt", "only_first")):
        files = found.get(key) or []
        if files:
            lines += ["", f"{title}:"]
            lines += [f"  {printable(str(item.get('name')), 60)}" for item in files]
    settings = found.get("settings") or {}
    if settings:
        lines += ["", "settings:"]
        lines += [f"  {name}: {c.get('first')} → {c.get('second')}" for name, c in settings.items()]
    return lines


async def pin(app: TrainerApp) -> None:
    version = _version(app)
    deed = "unpin" if version.pinned else "pin"
    await app.change("POST", f"/v1/versions/{version.number}/{deed}")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{version.number:03d} {deed}ned", "good")


async def compare(app: TrainerApp) -> None:
    """The version's validation loss as a line in the chart; again takes it away."""
    version = _version(app)
    chosen = None if app.loss.look.compare == version.number else version.number
    app.loss.set_look(compare=chosen)
    if chosen is not None:
        app.say(f"v{chosen:03d} in the chart: {figures.loss(version.loss)}", "dim")


async def verify(app: TrainerApp) -> None:
    version = _version(app)
    app.say(f"reading every byte of v{version.number:03d}…", "dim")
    answer = await app.change("POST", f"/v1/versions/{version.number}/verify")
    app.feed_again("versions")
    state = answer.get("state", "ok") if isinstance(answer, dict) else "ok"
    if state == "ok":
        app.say(f"{app.glyphs.check} v{version.number:03d}: every hash is right", "good")
    else:
        app.say(f"{app.glyphs.cross} v{version.number:03d} is {state}", "bad")


async def delete_version(app: TrainerApp) -> None:
    version = _version(app)
    words = [
        f"{printable(version.description or version.name, 60)}",
        f"Its files ({figures.size(version.bytes)}) go to the trash, which is emptied by age.",
        "Other versions, the checkpoints and the training stay as they are.",
    ]
    if not await app.confirm(f"Delete v{version.number:03d}?", words):
        return
    await app.change("DELETE", f"/v1/versions/{version.number}")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{version.number:03d} is in the trash: : brings it back", "good")
