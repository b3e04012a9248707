"""What an action needs to know to say whether it can be done now."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer_tui.tui.view import Connecting, Job, Live, Lost, Panel, Version, View

GUARDED = "needs_approval"


@dataclass(frozen=True, slots=True)
class Situation:
    view: View = field(default_factory=View)
    focus: Panel | None = Panel.QUEUE
    job: Job | None = None
    version: Version | None = None
    read_only: bool = False
    zoomed: bool = False


def may_change(at: Situation) -> str | None:
    """Why nothing at all can be changed now; None when it can."""
    if at.read_only:
        return "this screen is read-only"
    match at.view.link:
        case Live():
            return None
        case Connecting():
            return "not connected yet"
        case Lost():
            return "the daemon does not answer"


def waiting_job(at: Situation) -> str | None:
    """Why the selected job cannot be moved or weighed."""
    if at.job is None:
        return "no job is selected"
    if at.job.state == "processing":
        return f"#{at.job.id} is being trained"
    return (
        None if at.job.state == "waiting" else f"#{at.job.id} does not wait, it is {at.job.state}"
    )


def any_job(at: Situation) -> str | None:
    return None if at.job is not None else "no job is selected"


def removable(at: Situation) -> str | None:
    if at.job is None:
        return "no job is selected"
    return (
        f"#{at.job.id} is being trained: skip it first (s)"
        if at.job.state == "processing"
        else None
    )


def retriable(at: Situation) -> str | None:
    if at.job is None:
        return "no job is selected"
    blocked = at.job.state == "waiting" and at.job.verdict == "block"
    if at.job.state in ("failed", "completed") or blocked:
        return None
    return f"#{at.job.id} neither failed nor is blocked nor done"


def done_job(at: Situation) -> str | None:
    """Why the selected job's loss cannot be laid over the one in hand."""
    if at.job is None:
        return "no job is selected"
    return None if at.job.state == "completed" else f"#{at.job.id} is not done"


def untrained(at: Situation) -> str | None:
    if at.view.training.global_step:
        return "training has begun; a new model is an edit of base_model, then approve (a)"
    return None


def has_version(at: Situation) -> str | None:
    return None if at.version is not None else "there is no version yet"


def pausable(at: Situation) -> str | None:
    if at.view.training.state in ("stopping", "starting"):
        return f"training is {at.view.training.state}"
    return None


def stoppable(at: Situation) -> str | None:
    state = at.view.training.state
    return "training is stopped already: p resumes" if state == "stopped" else None


def killable(at: Situation) -> str | None:
    """Why there is no trainer to kill."""
    running = at.view.training.trainer_pid is not None
    return None if running else "no trainer runs"


def trained_version(at: Situation) -> str | None:
    """Why the selected version cannot be copied out."""
    if at.version is None:
        return "there is no version yet"
    intact = at.version.state == "ok"
    return None if intact else f"v{at.version.number:03d} is {at.version.state}"


def saveable(at: Situation) -> str | None:
    return "no step has been trained yet" if not at.view.training.global_step else None


def pending_config(at: Situation) -> str | None:
    status = at.view.status
    pending = status.config.pending if status else []
    waits = any(not isinstance(p, dict) or p.get("when", GUARDED) == GUARDED for p in pending)
    return None if waits else "no config change waits for approval"


def halted(at: Situation) -> bool:
    """Whether `p` resumes."""
    training = at.view.training
    if training.intent.training in ("pause", "stopped", "degraded"):
        return True
    return training.state in ("paused", "pausing", "stopped", "degraded")
