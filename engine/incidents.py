"""When training goes wrong: detectors over losses and norms, and the ladder of what to do.

Pure: a `Watch` is a value that takes a figure and gives the next watch and what it found. It is
stored with every checkpoint, so a resume decides as an uninterrupted run would have.

Limits: a detector sees one figure at a time and knows no cause; people do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from trainer_tui.engine.evaluate import Result
from trainer_tui.safety.config import Ladder

Kind = Literal["overfitting", "forgetting", "divergence", "nan"]
Rung = Literal["notify", "halve_lr", "stop_file", "rollback"]

OVERFITTING_EVALS = 3  # evaluations without improvement while the probe falls
OVERFITTING_SHARE = 0.005
FORGETTING_SHARE = 0.02
SPIKE_FACTOR = 3.0  # a loss or norm this many times its running mean
SPIKE_STEPS = 5  # that many in a row are a divergence, one is a hard batch
EMA_STEPS = 50
WARMED_UP_STEPS = 20  # no verdict before the running means mean something


@dataclass(frozen=True, slots=True)
class Incident:
    """Something found. `figures` are the evidence."""

    kind: Kind
    text: str
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Watch:
    """Running figures. Everything about one file (`job_*`) starts anew with the next file."""

    steps: int = 0
    loss_mean: float = 0.0
    norm_mean: float = 0.0
    spikes: int = 0
    nan_steps: int = 0  # in a row
    best_fixed: float = math.inf
    fixed_set: str = ""
    rungs: dict[str, int] = field(default_factory=dict)  # how far up each kind's ladder we are
    job_id: int = 0
    job_best_holdout: float = math.inf
    job_stale_evals: int = 0
    job_last_holdout: float = math.inf
    job_probe_start: float = math.inf  # when the holdout was at its best
    job_last_probe: float = math.inf

    def as_dict(self) -> dict[str, Any]:
        """JSON has no infinity: those become null."""
        values = asdict(self)
        return {k: None if v == math.inf else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Watch:
        """What `as_dict` gave; unknown fields are left out."""
        known: dict[str, Any] = {
            name: math.inf if value is None else value
            for name, value in values.items()
            if name in cls.__dataclass_fields__
        }
        return cls(**known)

    def of_job(self, job_id: int) -> Watch:
        if job_id == self.job_id:
            return self
        rungs = {kind: rung for kind, rung in self.rungs.items() if kind != "overfitting"}
        fresh = Watch()
        return replace(
            self,
            job_id=job_id,
            rungs=rungs,
            job_best_holdout=fresh.job_best_holdout,
            job_stale_evals=0,
            job_last_holdout=fresh.job_last_holdout,
            job_probe_start=fresh.job_probe_start,
            job_last_probe=fresh.job_last_probe,
        )


def after_step(
    watch: Watch, loss: float, grad_norm: float, skipped: bool
) -> tuple[Watch, Incident | None]:
    """Divergence and NaN. A skipped step counts towards NaN only."""
    if skipped or not (math.isfinite(loss) and math.isfinite(grad_norm)):
        count = watch.nan_steps + 1
        text = f"a NaN or an infinity in the gradients: update skipped ({count} in a row)"
        return replace(watch, nan_steps=count), Incident("nan", text, {"in_a_row": count})
    watch = replace(watch, nan_steps=0, steps=watch.steps + 1)
    warmed_up = watch.steps > WARMED_UP_STEPS
    loss_spike = warmed_up and loss > SPIKE_FACTOR * watch.loss_mean
    norm_spike = warmed_up and grad_norm > SPIKE_FACTOR * watch.norm_mean
    if not (loss_spike or norm_spike):
        weight = 1.0 / min(watch.steps, EMA_STEPS)
        return replace(
            watch,
            spikes=0,
            loss_mean=watch.loss_mean + weight * (loss - watch.loss_mean),
            norm_mean=watch.norm_mean + weight * (grad_norm - watch.norm_mean),
        ), None
    if watch.spikes + 1 < SPIKE_STEPS:
        return replace(watch, spikes=watch.spikes + 1), None
    what, value, mean = (
        ("loss", loss, watch.loss_mean) if loss_spike else ("norm", grad_norm, watch.norm_mean)
    )
    text = f"divergence: {what} {value:.3g} for {SPIKE_STEPS} steps, {mean:.3g} before"
    figures = {"value": value, "mean": mean}
    # The level it has now is the new normal, so that one divergence is one incident.
    settled = replace(watch, spikes=0, steps=0, loss_mean=0.0, norm_mean=0.0)
    return settled, Incident("divergence", text, figures)


def after_evaluation(watch: Watch, result: Result) -> tuple[Watch, Incident | None]:
    """Overfitting and forgetting. Only figures of one and the same set are compared."""
    match result.series:
        case "probe":
            start = watch.job_probe_start
            if start == math.inf:
                start = result.loss
            return replace(watch, job_probe_start=start, job_last_probe=result.loss), None
        case "holdout":
            return _holdout(watch, result)
        case "fixed" if result.whole:
            return _fixed(watch, result)
        case _:
            return watch, None


def _holdout(watch: Watch, result: Result) -> tuple[Watch, Incident | None]:
    margin = max(OVERFITTING_SHARE * watch.job_best_holdout, 2 * result.standard_error)
    if watch.job_best_holdout == math.inf or result.loss < watch.job_best_holdout - margin:
        return replace(
            watch,
            job_best_holdout=result.loss,
            job_last_holdout=result.loss,
            job_stale_evals=0,
            job_probe_start=watch.job_last_probe,
        ), None
    stale = watch.job_stale_evals + 1
    moved = replace(watch, job_last_holdout=result.loss, job_stale_evals=stale)
    probe_falls = watch.job_last_probe < watch.job_probe_start
    if stale < OVERFITTING_EVALS or not probe_falls:
        return moved, None
    text = (
        f"overfitting: the holdout stands at {result.loss:.4f} (best {watch.job_best_holdout:.4f}) "
        f"for {stale} evaluations while trained rows fall to {watch.job_last_probe:.4f}"
    )
    figures = {
        "holdout": result.loss,
        "best_holdout": watch.job_best_holdout,
        "probe": watch.job_last_probe,
    }
    return replace(moved, job_stale_evals=0), Incident("overfitting", text, figures)


def _fixed(watch: Watch, result: Result) -> tuple[Watch, Incident | None]:
    if watch.fixed_set != result.set_id:  # another set: nothing to compare with yet
        return replace(watch, fixed_set=result.set_id, best_fixed=result.loss), None
    if result.loss <= watch.best_fixed:
        return replace(watch, best_fixed=result.loss), None
    limit = watch.best_fixed * (1 + FORGETTING_SHARE)
    holdout_falls = watch.job_last_holdout <= watch.job_best_holdout < math.inf
    if result.loss <= limit or not holdout_falls:
        return watch, None
    text = (
        f"forgetting: the validation set rose to {result.loss:.4f} (best {watch.best_fixed:.4f}) "
        "while the file's own holdout falls"
    )
    return watch, Incident("forgetting", text, {"fixed": result.loss, "best": watch.best_fixed})


def climb(watch: Watch, kind: Kind, ladder: Ladder) -> tuple[Watch, Rung]:
    """The next rung for this kind of incident; the last rung is kept when it comes again."""
    rungs: tuple[Rung, ...]
    match kind:
        case "overfitting":
            rungs = ladder.overfitting
        case "forgetting":
            rungs = ladder.forgetting
        case "divergence":
            rungs = ladder.divergence
        case "nan":
            rungs = ("notify",)
    at = min(watch.rungs.get(kind, 0), max(len(rungs) - 1, 0))
    rung: Rung = rungs[at] if rungs else "notify"
    return replace(watch, rungs={**watch.rungs, kind: at + 1}), rung
