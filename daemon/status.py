"""The status document of `GET /v1/status`, and the flat `training_status.json` made from it.

Both are views: built from what the other parts know, never read back by them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import msgspec

from trainer_tui.daemon import decide, eta
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.keeper import Keeper
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.training import Training
from trainer_tui.safety import clock, config
from trainer_tui.safety.heartbeat import Beat
from trainer_tui.safety.meters import Machine
from trainer_tui.safety.workspace import Workspace

# What changes by itself, and so is no reason to tell anybody.
_VOLATILE = ("now", "last_event_id")
_VOLATILE_TRAINING = ("phase_age_s", "last_sample_age_s")
MEMORY_GRAIN = 64 << 20
LOAD_GRAIN_PERCENT = 5


def version() -> str:
    return metadata.version("trainer-tui")


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything the document is made of."""

    workspace: Workspace
    settings: Settings
    desk: Desk
    training: Training
    keeper: Keeper
    bus: Bus
    started_at: str
    started_s: float


def build(sources: Sources, machine: Machine | None, beat: Beat | None) -> dict[str, Any]:
    """The whole document; unknown figures are None."""
    settings = sources.settings
    return {
        "revision": sources.desk.revision,
        "now": clock.now_iso(),
        "last_event_id": sources.bus.last_id,
        "daemon": {
            "pid": os.getpid(),
            "version": version(),
            "started_at": sources.started_at,
            "uptime_s": round(clock.monotonic_s() - sources.started_s, 1),
            "host": socket.gethostname(),
            "workspace": str(sources.workspace.root),
            "viewers": sources.bus.readers,
        },
        "training": _training(sources, beat),
        "model": _model(sources),
        "queue": sources.desk.counts,
        "machine": machine.as_dict() if machine else None,
        "config": {
            "hash": config.config_hash(settings.frozen or settings.in_force()),
            "problem": settings.problem,
            "pending": [pending.as_dict() for pending in settings.pending()],
        },
    }


def _training(sources: Sources, beat: Beat | None) -> dict[str, Any]:
    training, figures = sources.training, sources.training.figures
    facts = training.facts()
    phase = beat.phase.label if beat and training.trainer else ""
    now_s = clock.monotonic_s()
    step = max(figures.global_step or 0, beat.global_step if beat and training.trainer else 0)
    saved = figures.saved_step
    known = figures.global_step is not None
    work = sources.desk.work + training.begun_again()
    estimate = eta.estimate(figures, work, sources.settings.config.epochs)
    return {
        "state": decide.state_word(facts, phase, saving_matters=training.in_hand is None),
        "reason": reason(training, facts),
        "intent": msgspec.to_builtins(training.intent),
        "phase": phase or None,
        "phase_age_s": round(now_s - beat.monotonic_ns / 1e9, 2) if beat and phase else None,
        "trainer_pid": training.trainer.pid if training.trainer else None,
        "restarts": training.aftermath.restarts,
        "global_step": step if known else None,
        "lineage": figures.lineage,
        "epoch": figures.epoch,
        "checkpoint": figures.checkpoint,
        "job": _job(sources),
        "loss": figures.loss,
        "loss_ema": figures.loss_ema,
        "val_loss": figures.val_loss,
        "best_val_loss": figures.best_val_loss,
        "learning_rate": figures.learning_rate,
        "lr_factor": figures.lr_factor,
        "grad_norm": figures.grad_norm,
        "tokens_per_s": figures.tokens_per_s,
        "supervised_tokens_per_s": figures.supervised_tokens_per_s,
        "step_s": figures.step_s,
        "mfu": figures.mfu,
        "tokens_seen": figures.tokens_seen,
        "supervised_tokens_seen": figures.supervised_tokens_seen,
        "eta_job_s": estimate.job_s[0] if estimate.job_s else None,
        "eta_job_p90_s": estimate.job_s[1] if estimate.job_s else None,
        "eta_queue_s": estimate.queue_s,
        "last_sample_at": figures.last_sample_at,
        "last_sample_age_s": (
            round(now_s - figures.last_sample_s, 1) if figures.last_sample_s else None
        ),
        "unsaved_steps": max(0, step - saved) if known and saved is not None else None,
    }


def reason(training: Training, facts: decide.Facts) -> str | None:
    """Why training does not train, in one sentence; None when it does or nothing is asked."""
    match facts.wish:
        case "degraded":
            return training.intent.why or "training was given up"
        case "stopped" | "pause" | "stop_after_file":
            by = training.intent.by
            text = training.intent.why or (f"asked by {by}" if by else "")
            return text or None
        case "run":
            pass
    if facts.hold or facts.blocker:
        return facts.hold or facts.blocker
    if facts.restoring:
        return "a version is being restored"
    if isinstance(facts.trainer, decide.Absent) and facts.trainer.back_off_left_s > 0:
        last = training.aftermath.last
        after = f" after: {last.finding.text}" if last else ""
        return f"a new trainer starts in {facts.trainer.back_off_left_s:.0f} s{after}"
    if isinstance(facts.trainer, decide.Present) and training.trainer_waits:
        return training.trainer_waits
    return None


def not_training(training: Training, facts: decide.Facts) -> str:
    """Why a waiting file cannot be next, in a few words."""
    match facts.wish:
        case "pause":
            return "training is paused"
        case "stopped" | "stop_after_file":
            return "training is stopped"
        case "degraded":
            return "training was given up"
        case "run":
            return facts.hold or facts.blocker


def _job(sources: Sources) -> dict[str, Any] | None:
    figures, training = sources.training.figures, sources.training
    job_id = training.in_hand
    if job_id is None:
        return None
    return {
        "id": job_id,
        "name": sources.desk.name_of(job_id),
        "step": figures.job_step,
        "steps": figures.job_steps or None,
        "fraction": figures.fraction or 0.0,
        "epoch": figures.epoch,
        "epochs": figures.epochs,
    }


def _model(sources: Sources) -> dict[str, Any]:
    ready = sources.training.figures.ready
    return {
        "name": sources.settings.in_force().model_name,
        "parameters": ready.parameters if ready else None,
        "device": ready.device if ready else None,
        "precision": ready.precision if ready else None,
        "attention": ready.attention if ready else None,
        "latest_version": sources.keeper.latest,
    }


def lasting(document: dict[str, Any]) -> bytes:
    """What of the document is worth an event when it changes: ages out, meters coarse."""
    kept = {key: value for key, value in document.items() if key not in _VOLATILE}
    kept["daemon"] = {**document["daemon"], "uptime_s": 0}
    kept["training"] = {
        key: value for key, value in document["training"].items() if key not in _VOLATILE_TRAINING
    }
    if machine := document["machine"]:
        coarse = dict(machine)
        coarse["load_percent"] = round(machine["load_percent"] / LOAD_GRAIN_PERCENT)
        for name in machine:
            if name.endswith("_bytes"):
                coarse[name] = machine[name] // MEMORY_GRAIN
        kept["machine"] = coarse
    return msgspec.json.encode(kept)


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """`state/status/training_status.json`: for programs that want a few plain keys."""
    training, machine = document["training"], document["machine"] or {}
    gpu = (machine.get("gpus") or [None])[0] or {}
    job = training["job"] or {}
    queue = document["queue"]
    return {
        "state": training["state"],
        "reason": training["reason"],
        "intent": training["intent"]["training"],
        "heartbeat": document["now"],
        "daemon_pid": document["daemon"]["pid"],
        "trainer_pid": training["trainer_pid"],
        "current_step": job.get("step"),
        "total_steps": job.get("steps"),
        "global_step": training["global_step"],
        "epoch": training["epoch"],
        "loss": training["loss"],
        "val_loss": training["val_loss"],
        "learning_rate": training["learning_rate"],
        "tokens_per_s": training["tokens_per_s"],
        "gpu_utilisation_percent": gpu.get("utilisation_percent"),
        "gpu_memory_used_bytes": gpu.get("memory_used_bytes"),
        "gpu_memory_total_bytes": gpu.get("memory_total_bytes"),
        "gpu_temperature_c": gpu.get("temperature_c"),
        "ram_used_bytes": machine.get("memory_used_bytes"),
        "ram_total_bytes": machine.get("memory_total_bytes"),
        "disk_free_bytes": machine.get("disk_free_bytes"),
        "eta_s": training["eta_job_s"],
        "eta_queue_s": training["eta_queue_s"],
        "current_file": job.get("name"),
        "checkpoint": training["checkpoint"],
        "latest_version": document["model"]["latest_version"],
        "waiting": queue["waiting"],
        "processing": queue["processing"],
        "completed": queue["recently_completed"],
        "failed": queue["failed"],
        "queue": queue,
    }
