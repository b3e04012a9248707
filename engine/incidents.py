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
FILE_LEVEL_STEPS = 5  # so many first steps of a file say what is usual in it
HARDER_FILE = 3.0  # a file may begin so many times above what files usually begin with
LEVEL_RISE, LEVEL_FALL = 1.1, 0.99  # how fast that follows, at most, from file to file
CALM_STEPS = 500  # so many without a spike, and the ladder begins at its foot again
LOWEST_FACTOR = 1 / 64  # what halving never goes below; further down nothing would be learnt


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
    calm_steps: int = 0  # since the last spike
    nan_steps: int = 0  # in a row
    best_fixed: float = math.inf
    told_fixed: float = 0.0  # the loss that was told as forgetting; 0: none
    fixed_set: str = ""
    rungs: dict[str, int] = field(default_factory=dict)  # how far up each kind's ladder we are
    usual_loss: float = 0.0  # what files begin with; 0: none is known
    usual_norm: float = 0.0
    job_id: int = 0
    job_steps: int = 0
    job_loss_level: float = 0.0  # of the file's first steps
    job_norm_level: float = 0.0
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
            usual_loss=_followed(self.usual_loss, self.job_loss_level),
            usual_norm=_followed(self.usual_norm, self.job_norm_level),
            job_steps=0,
            job_loss_level=0.0,
            job_norm_level=0.0,
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
    watch = _levelled(replace(watch, nan_steps=0, steps=watch.steps + 1), loss, grad_norm)
    warmed_up = watch.steps > WARMED_UP_STEPS
    loss_base = _base(watch.loss_mean, watch.usual_loss, watch.job_loss_level)
    norm_base = _base(watch.norm_mean, watch.usual_norm, watch.job_norm_level)
    loss_spike = warmed_up and loss > SPIKE_FACTOR * loss_base
    norm_spike = warmed_up and grad_norm > SPIKE_FACTOR * norm_base
    if not (loss_spike or norm_spike):
        weight = 1.0 / min(watch.steps, EMA_STEPS)
        return replace(
            _calmer(watch),
            spikes=0,
            loss_mean=watch.loss_mean + weight * (loss - watch.loss_mean),
            norm_mean=watch.norm_mean + weight * (grad_norm - watch.norm_mean),
        ), None
    watch = replace(watch, calm_steps=0)
    if watch.spikes + 1 < SPIKE_STEPS:
        return replace(watch, spikes=watch.spikes + 1), None
    what, value, mean = ("loss", loss, loss_base) if loss_spike else ("norm", grad_norm, norm_base)
    text = f"divergence: {what} {value:.3g} for {SPIKE_STEPS} steps, {mean:.3g} before"
    figures = {"value": value, "mean": mean}
    # The level it has now is the new normal, so that one divergence is one incident.
    settled = replace(
        watch,
        spikes=0,
        steps=0,
        loss_mean=0.0,
        norm_mean=0.0,
        usual_loss=max(watch.usual_loss, loss),
        usual_norm=max(watch.usual_norm, grad_norm),
    )
    return settled, Incident("divergence", text, figures)


def _base(mean: float, usual: float, level: float) -> float:
    """What a step is compared with. Another file may just be harder, but not without limit: files
    too short for a verdict of their own are seen by what files began with before."""
    return max(mean, usual, min(level, HARDER_FILE * usual) if usual else level)


def _followed(usual: float, level: float) -> float:
    """What files usually begin with, after one that began with `level` (0: it had no step)."""
    if not usual or not level:
        return usual or level
    return max(LEVEL_FALL * usual, min(level, LEVEL_RISE * usual))


def _levelled(watch: Watch, loss: float, grad_norm: float) -> Watch:
    """The mean over the file's first steps."""
    at = watch.job_steps + 1
    if at > FILE_LEVEL_STEPS:
        return replace(watch, job_steps=at)
    return replace(
        watch,
        job_steps=at,
        job_loss_level=watch.job_loss_level + (loss - watch.job_loss_level) / at,
        job_norm_level=watch.job_norm_level + (grad_norm - watch.job_norm_level) / at,
    )


def _calmer(watch: Watch) -> Watch:
    calm = watch.calm_steps + 1
    if calm < CALM_STEPS or "divergence" not in watch.rungs:
        return replace(watch, calm_steps=calm)
    rungs = {kind: rung for kind, rung in watch.rungs.items() if kind != "divergence"}
    return replace(watch, calm_steps=calm, rungs=rungs)


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
        return replace(watch, fixed_set=result.set_id, best_fixed=result.loss, told_fixed=0.0), None
    if result.loss <= watch.best_fixed:
        return replace(watch, best_fixed=result.loss, told_fixed=0.0), None
    if result.loss <= watch.best_fixed * (1 + FORGETTING_SHARE):
        return replace(watch, told_fixed=0.0), None
    # What was told is told again only when it got worse by as much once more.
    limit = max(watch.best_fixed, watch.told_fixed) * (1 + FORGETTING_SHARE)
    holdout_falls = watch.job_last_holdout <= watch.job_best_holdout < math.inf
    if result.loss <= limit or not holdout_falls:
        return watch, None
    text = (
        f"forgetting: the validation set rose to {result.loss:.4f} (best {watch.best_fixed:.4f}) "
        "while the file's own holdout falls"
    )
    figures = {"fixed": result.loss, "best": watch.best_fixed}
    return replace(watch, told_fixed=result.loss), Incident("forgetting", text, figures)


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
