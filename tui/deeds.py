"""What each action does. A change goes to the API; what is said afterwards is its effect.

Every function is `async (app) -> None`. Errors of the daemon are not caught here: `app.act` shows
them in one place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui import situation as can
from trainer_tui.tui.view import Job, Panel, Version

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

PRIORITIES = ("low", "normal", "high")


# --- training ---


async def pause(app: TrainerApp) -> None:
    if can.halted(app.situation()):
        status = await app.change("POST", "/v1/training/resume")
        app.say(f"{app.glyphs.check} {_training(status, 'resumed')}", "good")
        return
    app.say("pausing after this step…", "dim")
    status = await app.change("POST", "/v1/training/pause", {"release": False})
    app.say(f"{app.glyphs.check} {_training(status, 'paused')} · p resumes", "good")


def _training(status: object, fallback: str) -> str:
    """What the answer says training does now."""
    if isinstance(status, dict):
        inner = status.get("status")
        training = inner.get("training") if isinstance(inner, dict) else None
        if isinstance(training, dict) and training.get("state"):
            at = training.get("global_step")
            where = f" at step {figures.count(at)}" if isinstance(at, int) else ""
            return f"training: {training['state']}{where}"
    return f"training {fallback}"


async def stop(app: TrainerApp) -> None:
    job = app.view.training.job
    name = printable(job.name, 30) if job else "no file"
    choice = await app.choose(
        "Stop",
        [
            ("f", "after this file", f"finish {name}, then stop", None),
            ("n", "now, with a checkpoint", "finish this step, save, stop: nothing is lost", None),
            ("k", "skip this file", f"set {name} aside; what it taught stays; r goes on with it",
             None if job else "no file is being trained"),
        ],
        "The daemon and this screen stay. p resumes.",
    )  # fmt: skip
    match choice:
        case "f":
            status = await app.change("POST", "/v1/training/stop", {"now": False})
            app.say(f"{app.glyphs.check} {_training(status, 'stops after this file')}", "good")
        case "n":
            app.say("finishing the step and saving…", "dim")
            status = await app.change("POST", "/v1/training/stop", {"now": True})
            app.say(f"{app.glyphs.check} {_training(status, 'stopped')} · p resumes", "good")
        case "k" if job:
            await app.change("POST", "/v1/training/skip", {"job": job.id})
            app.say(f"{app.glyphs.check} #{job.id} {name} set aside · r goes on with it", "good")
        case _:
            pass


async def checkpoint(app: TrainerApp) -> None:
    app.say("saving a checkpoint…", "dim")
    await app.change("POST", "/v1/training/checkpoint")
    saved = app.view.training.checkpoint
    app.say(f"{app.glyphs.check} saved {saved or 'a checkpoint'}", "good")


# --- the queue ---


def _job(app: TrainerApp) -> Job:
    job = app.situation().job
    assert job is not None, "checked by the action"
    return job


async def _move(app: TrainerApp, by: int) -> None:
    job = _job(app)
    waiting = app.view.waiting
    at = next((i for i, other in enumerate(waiting) if other.id == job.id), None)
    target = None if at is None else at + by
    if target is None or not 0 <= target < len(waiting):
        app.say(f"#{job.id} is {'first' if by < 0 else 'last'} already", "dim")
        return
    key = "before" if by < 0 else "after"
    await app.patch_job(job.id, {key: waiting[target].id})


async def move_up(app: TrainerApp) -> None:
    await _move(app, -1)


async def move_down(app: TrainerApp) -> None:
    await _move(app, 1)


async def move_top(app: TrainerApp) -> None:
    await app.patch_job(_job(app).id, {"place": "top"})


async def move_bottom(app: TrainerApp) -> None:
    await app.patch_job(_job(app).id, {"place": "bottom"})


async def _weigh(app: TrainerApp, by: int) -> None:
    job = _job(app)
    now = PRIORITIES.index(job.priority) if job.priority in PRIORITIES else 1
    wanted = max(0, min(now + by, len(PRIORITIES) - 1))
    if wanted == now:
        app.say(f"#{job.id} is {job.priority} already", "dim")
        return
    await app.patch_job(job.id, {"priority": PRIORITIES[wanted]})


async def raise_priority(app: TrainerApp) -> None:
    await _weigh(app, 1)


async def lower_priority(app: TrainerApp) -> None:
    await _weigh(app, -1)


async def hold(app: TrainerApp) -> None:
    job = _job(app)
    await app.change("POST", f"/v1/jobs/{job.id}/{'unhold' if job.held else 'hold'}")
    app.feed_again("jobs")
    app.say(
        f"{app.glyphs.check} #{job.id} {'let go' if job.held else 'held back · h lets it go'}",
        "good",
    )


async def remove(app: TrainerApp) -> None:
    job = _job(app)
    await app.change("DELETE", f"/v1/jobs/{job.id}")
    app.forget_job(job.id)
    app.say(
        f"{app.glyphs.check} #{job.id} {printable(job.name, 30)} removed · u brings it back", "good"
    )


async def retry(app: TrainerApp) -> None:
    job = _job(app)
    error = job.error
    words = (error.message if error else None) or job.summary or "failed"
    options = [("t", "try again", "as it is", None)]
    if job.verdict == "block":
        why = "train the good rows in spite of the verdict"
        options.append(("o", "override", why, None))
    hint = (error.hint if error else None) or ""
    choice = await app.choose(f"#{job.id} {printable(job.name, 40)}", options, f"{words}\n{hint}")
    if choice is None:
        return
    await app.change("POST", f"/v1/jobs/{job.id}/retry", {"accept": choice == "o"})
    app.feed_again("jobs")
    app.say(f"{app.glyphs.check} #{job.id} waits again · u undoes it", "good")


# --- versions ---


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
    version = _version(app)
    if version.state != "ok":
        app.say(f"v{version.number:03d} is {version.state}; choose another", "bad")
        return
    if not await app.confirm(f"Roll back to v{version.number:03d}?", rollback_words(app, version)):
        return
    app.say(f"rolling back to v{version.number:03d}…", "dim")
    await app.change("POST", f"/v1/versions/{version.number}/restore")
    for what in ("versions", "metrics", "jobs"):
        app.feed_again(what)
    app.say(f"{app.glyphs.check} the model is v{version.number:03d} again", "good")


def rollback_words(app: TrainerApp, version: Version) -> list[str]:
    """What changes: steps, files, validation; and what does not."""
    training = app.view.training
    now, then = training.global_step, version.global_step
    lines = []
    if now is not None and then is not None:
        lines.append(
            f"What steps {figures.count(then + 1)} to {figures.count(now)} taught is undone:"
        )
        lines.append(f"{figures.count(now - then)} steps.")
    lost = _files_since(app, version)
    if lost:
        lines.append(f"Files trained since: {', '.join(lost[:4])}{' …' if len(lost) > 4 else ''}.")
    lines.append(
        f"Validation loss {figures.loss(training.val_loss)} now, {figures.loss(version.loss)} then."
    )
    if training.unsaved_steps:
        lines.append(f"{training.unsaved_steps} steps are not saved yet; they are saved first.")
    lines.append("Every version and checkpoint stays; the step count goes on from here.")
    return lines


def _files_since(app: TrainerApp, version: Version) -> list[str]:
    made = version.created_at or ""
    return [
        printable(job.name, 24)
        for job in app.view.jobs
        if job.state == "completed" and (job.finished_at or "") > made
    ]


async def diff_version(app: TrainerApp) -> None:
    version = _version(app)
    older = [v for v in app.view.versions if v.number < version.number]
    if not older:
        app.say(f"v{version.number:03d} is the first", "dim")
        return
    before = max(older, key=lambda item: item.number)
    await app.show_page(
        f"v{before.number:03d} → v{version.number:03d}", diff_lines(before, version)
    )


def diff_lines(before: Version, after: Version) -> list[str]:
    """What is different between two versions, one fact a line."""
    names_before = {item.get("name") for item in before.files or []}
    new = [
        str(item.get("name")) for item in after.files or [] if item.get("name") not in names_before
    ]
    lines = [
        f"steps    {figures.count(before.global_step)} → {figures.count(after.global_step)}",
        f"tokens   {figures.short_count(before.tokens)} → {figures.short_count(after.tokens)}",
        f"lineage  {before.lineage} → {after.lineage}",
    ]
    for name in sorted({*(before.validation or {}), *(after.validation or {})}):
        a, b = (before.validation or {}).get(name), (after.validation or {}).get(name)
        change = figures.signed(b - a) if a is not None and b is not None else ""
        lines.append(f"val {name:<8} {figures.loss(a)} → {figures.loss(b)}  {change}")
    lines += ["", "files trained in between:" if new else "no new files"]
    return lines + [f"  {printable(name, 60)}" for name in new]


async def pin(app: TrainerApp) -> None:
    version = _version(app)
    deed = "unpin" if version.pinned else "pin"
    await app.change("POST", f"/v1/versions/{version.number}/{deed}")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{version.number:03d} {deed}ned", "good")


async def verify(app: TrainerApp) -> None:
    version = _version(app)
    app.say(f"reading every byte of v{version.number:03d}…", "dim")
    await app.change("POST", f"/v1/versions/{version.number}/verify")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{version.number:03d}: every hash is right", "good")


async def delete_version(app: TrainerApp) -> None:
    version = _version(app)
    words = [
        f"{printable(version.description or version.name, 60)}",
        f"Its weights ({figures.size(version.bytes)}) are lost for good.",
        "Other versions, the checkpoints and the training stay as they are.",
    ]
    if not await app.confirm(f"Delete v{version.number:03d}?", words):
        return
    await app.change("DELETE", f"/v1/versions/{version.number}")
    app.feed_again("versions")
    app.say(f"{app.glyphs.check} v{version.number:03d} deleted", "good")


# --- undo, config ---


async def undo(app: TrainerApp) -> None:
    await _undo(app, "undo", "undone")


async def redo(app: TrainerApp) -> None:
    await _undo(app, "redo", "done again")


async def _undo(app: TrainerApp, deed: str, done: str) -> None:
    answer = await app.change("POST", f"/v1/{deed}")
    what = ""
    if isinstance(answer, dict):
        found = answer.get("undone") or answer.get("redone") or answer.get("text") or ""
        what = (
            str(found.get("text") or found.get("what") or "")
            if isinstance(found, dict)
            else str(found)
        )
    app.feed_again("jobs")
    other = "ctrl+r" if deed == "undo" else "u"
    app.say(
        f"{app.glyphs.check} {done}{': ' + printable(what, 80) if what else ''} · {other}", "good"
    )


async def approve(app: TrainerApp) -> None:
    status = app.view.status
    pending = list(status.config.pending) if status else []
    lines = [printable(_pending_words(item), 100) for item in pending]
    if await app.confirm("Approve this change of the configuration?", lines):
        await app.change("PATCH", "/v1/config", {"approve": True})
        app.say(f"{app.glyphs.check} approved; it acts on the next file", "good")


def _pending_words(item: object) -> str:
    if isinstance(item, dict):
        key, old, new = (item.get(name) for name in ("key", "old", "new"))
        return f"{key}: {old} → {new}" if key else str(item)
    return str(item)


# --- the screen itself ---


def focus_panel(panel: Panel) -> Callable[[TrainerApp], Awaitable[None]]:
    async def run(app: TrainerApp) -> None:
        app.focus_panel(panel)

    return run


def by_rows(rows: int) -> Callable[[TrainerApp], Awaitable[None]]:
    async def run(app: TrainerApp) -> None:
        if panel := app.focused_panel():
            panel.step(rows)

    return run


async def first(app: TrainerApp) -> None:
    if panel := app.focused_panel():
        panel.ends(last=False)


async def last(app: TrainerApp) -> None:
    if panel := app.focused_panel():
        panel.ends(last=True)


async def next_found(app: TrainerApp) -> None:
    if panel := app.focused_panel():
        panel.step(1)


async def previous_found(app: TrainerApp) -> None:
    if panel := app.focused_panel():
        panel.step(-1)


async def next_panel(app: TrainerApp) -> None:
    app.screen.focus_next(".panel")


async def previous_panel(app: TrainerApp) -> None:
    app.screen.focus_previous(".panel")


async def find(app: TrainerApp) -> None:
    app.begin_find()


async def copy(app: TrainerApp) -> None:
    if panel := app.focused_panel():
        app.copy(panel.copy_text())


async def open_selected(app: TrainerApp) -> None:
    app.toggle_panel(Panel.INSPECTOR)


async def zoom(app: TrainerApp) -> None:
    app.toggle_zoom()


async def back(app: TrainerApp) -> None:
    app.go_back()


async def log_axis(app: TrainerApp) -> None:
    app.loss.set_look(log=not app.loss.look.log)


async def ema(app: TrainerApp) -> None:
    app.loss.set_look(ema=(app.loss.look.ema + 1) % 4)


async def follow(app: TrainerApp) -> None:
    app.loss.follow()


def cursor(columns: int) -> Callable[[TrainerApp], Awaitable[None]]:
    async def run(app: TrainerApp) -> None:
        app.loss.move_cursor(columns)

    return run


def chart_zoom(factor: float) -> Callable[[TrainerApp], Awaitable[None]]:
    async def run(app: TrainerApp) -> None:
        app.loss.zoom(factor)

    return run


async def palette(app: TrainerApp) -> None:
    app.action_command_palette()


async def show_help(app: TrainerApp) -> None:
    await app.show_help()


async def mouse(app: TrainerApp) -> None:
    app.toggle_mouse()


async def repaint(app: TrainerApp) -> None:
    app.repaint_everything()


async def picture(app: TrainerApp) -> None:
    app.say(f"{app.glyphs.check} saved {app.save_picture()}", "good")


async def theme(app: TrainerApp) -> None:
    app.toggle_theme()


async def detach(app: TrainerApp) -> None:
    app.exit()
