"""What a person asks of training, with the answer after the effect: pause, resume, stop, kill,
skip, checkpoint. Each writes the intent first where it changes it.
"""

from __future__ import annotations

from trainer_tui.daemon import keeper
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.training import Training
from trainer_tui.daemon.training_state import WISHES
from trainer_tui.daemon.undo import SetIntent
from trainer_tui.safety import messages
from trainer_tui.safety.errors import NotFound, Refused

EFFECT_TIMEOUT_S = 900.0
KILL_TIMEOUT_S = 30.0


async def pause(training: Training, by: str, *, release: bool) -> None:
    """Training stands still, its steps committed. Raises Refused when it does not in time."""
    await training.set_intent("pause", by, release=release)
    changed = await training.until(
        lambda: (
            training.intent.training != "pause"
            or training.trainer is None
            or (training.present.paused and not release)
        ),
        EFFECT_TIMEOUT_S,
    )
    if not changed:
        raise Refused(f"training did not pause within {EFFECT_TIMEOUT_S:.0f} s; it still will")


async def resume(training: Training, by: str) -> None:
    """The intent is `run` and a paused trainer has gone on; a new one may still be starting, and
    what training has to pause for by itself (heat, disk) is not waited for."""
    await training.set_intent("run", by)
    await training.until(
        lambda: (
            training.intent.training != "run"
            or training.trainer is None
            or bool(training.holds)
            or not (training.present.paused or training.resuming)
        ),
        EFFECT_TIMEOUT_S,
    )


async def set_back(training: Training, act: SetIntent, by: str) -> None:
    """Undo or redo a pause or resume, when nobody has asked for anything else since. Raises
    Refused."""
    now = training.intent
    if now.training != act.expects:
        who = f" (asked by {now.by})" if now.by else ""
        text = f"something else was asked of training since: {WISHES[now.training]}{who}"
        raise Refused(text, "to change that: trainer-tui resume, pause or stop")
    await training.set_intent(act.training, by)


async def stop(training: Training, by: str, *, now: bool) -> None:
    """`now`: the trainer has finished its step, committed and exited. Otherwise this is promised
    for the end of the file, and the reply does not wait for it."""
    file_goes_on = training.in_hand is not None and not training.present.paused
    if now or not file_goes_on:
        await training.set_intent("stopped", by)
        ended = await training.until(
            lambda: training.trainer is None or training.intent.training != "stopped",
            EFFECT_TIMEOUT_S,
        )
        if not ended:
            raise Refused(f"the trainer did not end within {EFFECT_TIMEOUT_S:.0f} s; it still will")
    else:
        await training.set_intent("stop_after_file", by)
        await training.until(
            lambda: training.present.asked == "stop_after_file" or training.trainer is None, 5.0
        )


async def kill(training: Training, by: str) -> int:
    """The trainer and all it started are killed, whatever they were doing; the intent becomes
    `stopped`. What no checkpoint holds is lost: returns how many steps that is.

    Raises:
        Refused: no trainer runs, or it cannot die (it hangs in the kernel).
    """
    trainer = training.trainer
    if trainer is None:
        raise Refused("no trainer runs: there is nothing to kill", "to stand still: stop or pause")
    step = training.step_of_now()
    await training.set_intent("stopped", by, "killed")
    await trainer.kill()
    if not await training.until(lambda: training.trainer is not trainer, KILL_TIMEOUT_S):
        raise Refused(
            f"the trainer (pid {trainer.pid}) did not die within {KILL_TIMEOUT_S:.0f} s",
            "it hangs in the kernel, perhaps on its disk or its GPU: trainer-tui doctor",
        )
    saved = training.figures.saved_step or 0
    training.figures.global_step = saved  # what was beyond it is gone
    return max(0, step - saved)


async def skip(training: Training, desk: Desk, job_id: int | None) -> int:
    """Set the job in hand aside; what it taught stays. Returns its id.

    Raises:
        NotFound: no job is being trained, or not this one.
        Refused: the trainer ended before it had set it aside.
    """
    started = [job.id for job in desk.processing]
    wanted = job_id if job_id is not None else training.in_hand
    if wanted is None and training.trainer is None and started:
        wanted = started[0]
    if wanted is None or wanted not in started:
        raise NotFound("no such file is being trained" if job_id else "no file is being trained")
    trainer = training.trainer
    if trainer is None:
        await desk.fail(wanted, "skipped", "skipped before it went on", "")
        return wanted
    if training.stands_aside:
        raise Refused("a version is being restored: no file is in hand", "ask again in a moment")
    if training.in_hand != wanted:
        raise Refused(f"#{wanted} is trained and waits for its commit: it cannot be skipped")
    training.skip(wanted)
    await training.until(
        lambda: (
            wanted not in [job.id for job in desk.processing] or training.trainer is not trainer
        ),
        EFFECT_TIMEOUT_S,
    )
    if wanted in [job.id for job in desk.processing]:
        raise Refused(f"#{wanted} was not set aside: the trainer ended first", "try again")
    return wanted


async def checkpoint(training: Training) -> None:
    """Every step done by now is in a committed checkpoint. Raises Refused."""
    await keeper.save_now(training, EFFECT_TIMEOUT_S)


async def set_rate_factor(training: Training, factor: float) -> None:
    """The learning rate is multiplied by this from the next step on; a checkpoint holds it.

    Raises:
        Refused: no trainer runs that could take it, or it ended before it had saved.
    """
    trainer = training.trainer
    if trainer is None or not training.present.ready:
        raise Refused("no trainer runs that could take another rate", "trainer-tui resume")
    if training.stands_aside:
        raise Refused(
            "a version is being restored, which has its own rate", "ask again in a moment"
        )
    training.send(messages.Reconfigure({"lr_factor": factor}))
    answered = training.save()
    await training.until(lambda: answered() or training.trainer is not trainer, EFFECT_TIMEOUT_S)
    if training.figures.lr_factor != factor:
        raise Refused("no checkpoint holds the rate yet", "see what it is: trainer-tui rate")
