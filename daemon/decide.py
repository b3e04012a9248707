"""What to do about the trainer next: a pure function of what is wished and what is.

Level-triggered: it is asked again after every event, so a lost message, a crash or a changed mind
needs no path of its own. Doing is `training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from trainer_tui.daemon.intent import Wish
from trainer_tui.safety.messages import LetGo, NothingWaits, Pause, Resume, Stop, TakeUp

Asked = Literal["nothing", "pause", "pause_release", "stop_after_file", "stop", "let_go", "take_up"]


@dataclass(frozen=True, slots=True)
class Absent:
    """No trainer runs. `back_off_left_s` > 0: too soon after a crash."""

    back_off_left_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Present:
    """`asked`: the last request that still stands. `hungry`: it wants a job; `told_nothing_waits`:
    and it knows that there is none, for `idle_s` by now. `aside`: it has let go of the model.
    `reloads`: it is not ready because it loads what was restored."""

    ready: bool
    hungry: bool = False
    told_nothing_waits: bool = False
    paused: bool = False
    asked: Asked = "nothing"
    aside: bool = False
    reloads: bool = False
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """`ending`: the daemon shuts down. `restoring`: a restore or rollback needs the model on disk;
    with `exclusive` it needs the trainer to be gone, because another one would be needed anyway.
    `blocker`: why training cannot start (no model). `hold`: why it has to pause by itself (heat,
    disk). `work`: a job could be trained now; `started_work`: one is in `processing/`;
    `in_hand`: the trainer has a job. `renew`: an edit of the settings waits for the end of the
    file."""

    wish: Wish
    trainer: Absent | Present
    release: bool = False
    ending: bool = False
    restoring: bool = False
    exclusive: bool = False
    blocker: str = ""
    hold: str = ""
    work: bool = False
    started_work: bool = False
    in_hand: bool = False
    renew: bool = False
    idle_exit_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Spawn:
    pass


@dataclass(frozen=True, slots=True)
class Offer:
    """Give the trainer a job: a started one, or else claim the next."""


@dataclass(frozen=True, slots=True)
class BecomeStopped:
    """`stop_after_file` has come true: the intent is `stopped` now."""


@dataclass(frozen=True, slots=True)
class Send:
    message: Pause | Resume | Stop | LetGo | TakeUp | NothingWaits


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


Action = Spawn | Offer | BecomeStopped | Send | Nothing


def decide(facts: Facts) -> Action:
    match facts.trainer:
        case Absent() as absent:
            return _without_trainer(facts, absent)
        case Present() as present:
            return _with_trainer(facts, present)
        case _ as never:
            assert_never(never)


def _without_trainer(facts: Facts, absent: Absent) -> Action:
    if facts.ending or facts.restoring:
        return Nothing()
    if facts.wish == "stop_after_file" and not facts.started_work:
        return BecomeStopped()
    if facts.wish not in ("run", "stop_after_file"):
        return Nothing()
    if facts.blocker or facts.hold or absent.back_off_left_s > 0 or not facts.work:
        return Nothing()
    return Spawn()


def _with_trainer(facts: Facts, trainer: Present) -> Action:
    if facts.ending or facts.exclusive or facts.wish in ("stopped", "degraded"):
        return Nothing() if trainer.asked == "stop" else Send(Stop())
    if trainer.asked == "stop":
        return Nothing()  # its end is on the way; what is wished now, the next trainer does
    if facts.restoring:
        return _move_aside(trainer)
    if trainer.asked == "let_go":
        return Send(TakeUp())
    if trainer.asked == "take_up":
        return Nothing()  # what it says next tells whether it still has its file
    if facts.wish == "pause" or facts.hold:
        return _pause(facts, trainer)
    if trainer.paused or trainer.asked in ("pause", "pause_release"):
        return Send(Resume())
    if facts.wish == "stop_after_file":
        return _finish_file(facts, trainer)
    if trainer.asked == "stop_after_file":
        return Send(Resume())  # the person changed their mind before the file ended
    return _feed(facts, trainer)


def _finish_file(facts: Facts, trainer: Present) -> Action:
    """The file in hand, or one that an earlier trainer began: that is offered first. A trainer with
    neither is asked to stop once it has said that it wants one."""
    if trainer.asked == "stop_after_file":
        return Nothing()
    if trainer.hungry and facts.started_work:
        return Offer()
    return Send(Stop(after_file=True)) if trainer.hungry or facts.in_hand else Nothing()


def _move_aside(trainer: Present) -> Action:
    """One that still starts has nothing to keep, and need not be waited for."""
    if trainer.asked == "take_up" or trainer.reloads:
        return Nothing()  # there from the restore before, and ready in a moment
    if not trainer.ready:
        return Send(Stop())
    return Nothing() if trainer.asked == "let_go" else Send(LetGo())


def _pause(facts: Facts, trainer: Present) -> Action:
    release = facts.wish == "pause" and facts.release
    if trainer.asked == "pause_release" or (trainer.asked == "pause" and not release):
        return Nothing()
    if trainer.paused and not release:
        return Nothing()
    return Send(Pause(release=release))


def _feed(facts: Facts, trainer: Present) -> Action:
    if not trainer.ready or not trainer.hungry:
        return Nothing()
    if facts.renew:
        return Send(Stop())
    if facts.work:
        return Offer()
    if not trainer.told_nothing_waits:
        return Send(NothingWaits())
    return Send(Stop()) if trainer.idle_s >= facts.idle_exit_s else Nothing()


def state_word(facts: Facts, phase: str, *, saving_matters: bool) -> str:
    """`training.state` of the status document. `phase` is the heartbeat's word."""
    trainer = facts.trainer
    if isinstance(trainer, Absent):
        return _absent_word(facts, trainer)
    stops = facts.ending or facts.exclusive or facts.wish in ("stopped", "stop_after_file")
    if stops or trainer.asked in ("stop", "stop_after_file"):
        return "stopping"
    if facts.restoring:
        return "saving" if phase in ("stage", "persist") else "waiting"
    if facts.wish == "degraded":
        return "degraded"
    if trainer.paused:
        return "paused"
    if facts.wish == "pause" or facts.hold:
        return "pausing"
    if not trainer.ready:
        return "starting"
    if phase == "eval":
        return "evaluating"
    if saving_matters and phase in ("stage", "persist"):
        return "saving"
    return "idle" if trainer.hungry and not facts.work else "training"


def _absent_word(facts: Facts, absent: Absent) -> str:
    match facts.wish:
        case "pause":
            return "paused"
        case "stopped":
            return "stopped"
        case "degraded":
            return "degraded"
        case "run" | "stop_after_file":
            if facts.ending:
                return "stopping"
            if facts.hold:
                return "paused"
            if facts.blocker or absent.back_off_left_s > 0 or facts.restoring:
                return "waiting"
            return "starting" if facts.work else "idle"
        case _ as never:
            assert_never(never)
