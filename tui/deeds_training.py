"""Deeds on training: pause, stop, skip, kill, save. See `deeds`.

Invariant: what cannot be taken back (a kill) says first what it costs, and is typed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui import situation as can
from trainer_tui.tui.view import Training

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

KILL_WORD = "kill"


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
            ("x", "kill the trainer…", "at once, typed: steps no checkpoint holds are lost",
             can.killable(app.situation())),
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
        case "x":
            await kill(app)
        case _:
            pass


async def kill(app: TrainerApp) -> None:
    """Says what is lost; done when the word is typed, which no key or paste does by accident."""
    question, problem = "\n".join(kill_words(app.view.training)), ""
    while True:
        text = await app.ask("Kill the trainer", question, "", problem)
        if text is None:
            return
        if text == KILL_WORD:
            break
        problem = f"{printable(text, 20)!r} is not {KILL_WORD!r}: nothing was killed"
    answer = await app.change("POST", "/v1/training/kill")
    lost = answer.get("lost_steps") if isinstance(answer, dict) else None
    words = f"killed; {figures.count(lost)} steps are lost"
    app.say(f"{app.glyphs.check} {words} · p goes on from the checkpoint", "warn")


def kill_words(training: Training) -> list[str]:
    """What it does and what it costs, as far as is known now."""
    pid = f" (pid {training.trainer_pid})" if training.trainer_pid else ""
    lines = [f"The trainer{pid} and all it started end at once, whatever they are doing."]
    saved = training.checkpoint or "the last checkpoint"
    steps = training.unsaved_steps
    if steps is None:
        lines.append(f"Every step since {saved} is lost.")
    elif steps:
        seconds = figures.duration(steps * training.step_s) if training.step_s else "–"
        unit = "step" if steps == 1 else "steps"
        lines.append(
            f"{figures.count(steps)} {unit} since {saved} are lost: {seconds} of training."
        )
    else:
        lines.append(f"No step is lost now: {saved} holds them all.")
    lines.append("The file stays in the queue; p goes on with it. Stop, now, loses nothing.")
    return [*lines, "", f"Type {KILL_WORD} and press enter:"]


async def pause_and_release(app: TrainerApp) -> None:
    app.say("pausing after this step, then the GPU is freed…", "dim")
    status = await app.change("POST", "/v1/training/pause", {"release": True})
    app.say(f"{app.glyphs.check} {_training(status, 'paused')}, GPU free · p resumes", "good")


async def rate(app: TrainerApp) -> None:
    """What learning_rate is multiplied with; a ladder halves it."""
    question = "Multiply learning_rate with (1: as it is set; a halving by a ladder is 0.5):"
    text = await app.ask("Learning rate", question, "1")
    if not text:
        return
    try:
        factor = float(text.replace(",", "."))
    except ValueError:
        app.say(f"{printable(text, 30)} is no number", "bad")
        return
    await app.change("POST", "/v1/training/rate", {"factor": factor})
    app.say(f"{app.glyphs.check} learning_rate x {factor:g} from the next step on", "good")


async def checkpoint(app: TrainerApp) -> None:
    app.say("saving a checkpoint…", "dim")
    await app.change("POST", "/v1/training/checkpoint")
    saved = app.view.training.checkpoint
    app.say(f"{app.glyphs.check} saved {saved or 'a checkpoint'}", "good")
