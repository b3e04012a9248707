"""What each action does. A change goes to the API; what is said afterwards is its effect.

Every function is `async (app) -> None`. Errors of the daemon are not caught here: `app.act` shows
them in one place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import printable
from trainer_tui.tui import figures, moments
from trainer_tui.tui.compare import read_earlier
from trainer_tui.tui.remote import Declined
from trainer_tui.tui.view import Job, Panel

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

PRIORITIES = ("low", "normal", "high")


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


async def add_file(app: TrainerApp) -> None:
    question = "Path of a .jsonl file on the daemon's machine; it stays where it is:"
    path = await app.ask("Add a file", question)
    if not path:
        return
    body = {"path": str(Path(path).expanduser().absolute()), "priority": "normal"}
    try:
        answer = await app.backend.send("POST", "/v1/jobs", body)
    except Declined as refusal:
        if refusal.status != 409 or not await _once_more(app, refusal):
            raise
        answer = await app.backend.send("POST", "/v1/jobs", body | {"again": True})
    job = msgspec.json.decode(answer, type=Job)
    app.feed_again("jobs")
    app.say(f"{app.glyphs.check} #{job.id} {printable(job.name, 40)} is queued", "good")


async def _once_more(app: TrainerApp, refusal: Declined) -> bool:
    """Whether to queue it in spite of its having been trained or queued before."""
    options = [("o", "add it once more", "as a job of its own", None)]
    return await app.choose("Add a file", options, refusal.message) == "o"


async def postpone(app: TrainerApp) -> None:
    """`not_before`: the job waits until then."""
    job, problem = _job(app), ""
    now = datetime.now().astimezone()
    question = f"Not before when? {moments.WORDS}; empty: whenever its turn comes."
    while True:
        text = await app.ask(f"#{job.id} {printable(job.name, 40)}", question, "", problem)
        if text is None:
            return
        try:
            moment = moments.parse(text, now)
        except Refused as refusal:
            problem = str(refusal)
            continue
        await app.patch_job(job.id, {"not_before": moment.isoformat() if moment else None})
        return


async def compare_file(app: TrainerApp) -> None:
    """The loss of a file trained before, over that of the file in hand; again takes it away."""
    job = _job(app)
    earlier = app.loss.look.earlier
    if earlier is not None and earlier.job_id == job.id:
        app.loss.set_look(earlier=None)
        return
    found = await read_earlier(app.backend, app.view, job)
    app.loss.set_look(earlier=found)
    words = f"{printable(job.name, 40)} in the chart: {figures.count(found.steps)} steps"
    app.say(f"{words}; once more takes it away", "dim")


async def hold(app: TrainerApp) -> None:
    job = _job(app)
    await app.change("POST", f"/v1/jobs/{job.id}/{'unhold' if job.held else 'hold'}")
    app.feed_again("jobs")
    words = "let go" if job.held else "held back · h lets it go"
    app.say(f"{app.glyphs.check} #{job.id} {words}", "good")


async def remove(app: TrainerApp) -> None:
    job = _job(app)
    await app.change("DELETE", f"/v1/jobs/{job.id}")
    app.forget_job(job.id)
    name = printable(job.name, 30)
    app.say(f"{app.glyphs.check} #{job.id} {name} removed · u brings it back", "good")


async def retry(app: TrainerApp) -> None:
    job = _job(app)
    if job.state == "completed":
        await _again(app, job)
        return
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


async def _again(app: TrainerApp, job: Job) -> None:
    """A file that was trained, once more, as a new job."""
    answer = await app.backend.send("POST", f"/v1/jobs/{job.id}/again")
    made = msgspec.json.decode(answer, type=Job)
    app.feed_again("jobs")
    app.say(f"{app.glyphs.check} {printable(made.name, 40)} waits again as #{made.id}", "good")


# --- undo ---


async def undo(app: TrainerApp) -> None:
    await _undo(app, "undo", "ctrl+r does it again")


async def redo(app: TrainerApp) -> None:
    await _undo(app, "redo", "u undoes it")


async def _undo(app: TrainerApp, deed: str, back: str) -> None:
    """Asks first when the act was somebody else's."""
    acts = msgspec.json.decode(await app.backend.get("/v1/undo"))
    act = acts.get(deed) if isinstance(acts, dict) else None
    body: dict[str, bool] = {}
    if isinstance(act, dict) and act.get("by") not in (app.actor, None):
        by, text = printable(str(act["by"]), 40), printable(str(act.get("text")), 80)
        if not await app.confirm(f"{deed.capitalize()} what {by} did?", [text]):
            return
        body = {"force": True}
    answer = await app.change("POST", f"/v1/{deed}", body)
    what = str(answer.get("text") or "") if isinstance(answer, dict) else ""
    app.feed_again("jobs")
    app.say(f"{app.glyphs.check} {printable(what, 100) or deed} · {back}", "good")


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


async def theme(app: TrainerApp) -> None:
    app.toggle_theme()


async def detach(app: TrainerApp) -> None:
    app.exit()
