"""From one view to the next: `reduce(view, news) -> (view, panels touched)`. Pure.

Invariant: a panel that is not named as touched would draw the same rows as before.
Limits: `EVENTS_KEPT` events, `POINTS_KEPT` points a curve, a minute of machine samples; older
points are merged in pairs, so memory does not grow with the length of a visit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from trainer_tui.tui import figures
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.view import (
    ALL_PANELS,
    Evaluated,
    History,
    Jobs,
    JobsChanged,
    Link,
    Live,
    Metrics,
    Panel,
    Point,
    Said,
    ScreenSettings,
    Status,
    Step,
    Version,
    Versions,
    View,
)
from trainer_tui.tui.view import Job as JobView

EVENTS_KEPT = 400
POINTS_KEPT = 1600
MINUTE = len("2026-11-25T02:40")
MACHINE_KEPT = 60

Touched = frozenset[Panel]
NONE: Touched = frozenset()
_ORDER = {"processing": 0, "waiting": 1, "failed": 2, "completed": 3}
_STEP_SERIES = ("loss", "learning_rate", "grad_norm", "tokens_per_s", "supervised_tokens_per_s")


@dataclass(frozen=True, slots=True)
class LinkChanged:
    link: Link
    at_s: float


@dataclass(frozen=True, slots=True)
class StatusCame:
    status: Status
    at_s: float


@dataclass(frozen=True, slots=True)
class JobsCame:
    jobs: Jobs


@dataclass(frozen=True, slots=True)
class VersionsCame:
    versions: Versions


@dataclass(frozen=True, slots=True)
class HistoryCame:
    """Events of the past; those with an id above `seen` happened while nobody looked."""

    history: History
    seen: int | None


@dataclass(frozen=True, slots=True)
class MetricsCame:
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class StepsCame:
    steps: tuple[Step, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class EvaluatedCame:
    evaluated: Evaluated


@dataclass(frozen=True, slots=True)
class JobsChangedCame:
    change: JobsChanged


@dataclass(frozen=True, slots=True)
class SaidCame:
    said: Said


@dataclass(frozen=True, slots=True)
class SettingsCame:
    """The person's own settings of the screen; the app takes them, the view does not change."""

    settings: ScreenSettings


@dataclass(frozen=True, slots=True)
class DiskCame:
    """How long the disk will last."""

    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class AwayRead:
    """The strip of what happened meanwhile has been read."""


@dataclass(frozen=True, slots=True)
class FindingsCame:
    """What the doctor found."""

    findings: tuple[Finding, ...]


News = (
    LinkChanged
    | StatusCame
    | JobsCame
    | VersionsCame
    | HistoryCame
    | MetricsCame
    | StepsCame
    | EvaluatedCame
    | JobsChangedCame
    | SaidCame
    | AwayRead
    | SettingsCame
    | DiskCame
    | FindingsCame
)


def reduce(view: View, news: News) -> tuple[View, Touched]:
    """The view after `news`, and the panels that now look different."""
    match news:
        case LinkChanged(link, at_s):
            if type(link) is type(view.link) and isinstance(link, Live):
                return replace(view, heard_at_s=at_s), NONE
            return replace(view, link=link, heard_at_s=at_s), ALL_PANELS
        case StatusCame(status, at_s):
            return _status(view, status, at_s)
        case JobsCame(jobs):
            new = replace(view, jobs=tuple(jobs.jobs), jobs_total=jobs.total)
            return new, frozenset({Panel.QUEUE, Panel.INSPECTOR})
        case VersionsCame(versions):
            touched = frozenset({Panel.VERSIONS, Panel.LOSS, Panel.INSPECTOR, Panel.HEADER})
            listed = tuple(versions.versions)
            return replace(view, versions=listed, best_version=versions.best), touched
        case HistoryCame(history, seen):
            return _history(view, history, seen)
        case MetricsCame(metrics):
            curves = view.curves | {name: tuple(pts) for name, pts in metrics.series.items()}
            return replace(view, curves=curves), frozenset({Panel.LOSS})
        case StepsCame(steps, at_s):
            return _steps(view, steps, at_s)
        case EvaluatedCame(evaluated):
            point = Point(step=evaluated.step, mean=evaluated.loss, at=evaluated.at)
            curves = view.curves | {
                evaluated.series: extended(view.curves.get(evaluated.series, ()), (point,))
            }
            return replace(view, curves=curves), frozenset({Panel.LOSS})
        case JobsChangedCame(change):
            return _jobs_changed(view, change)
        case SaidCame(said):
            kept = (said, *(old for old in view.said if old.id != said.id))
            touched = frozenset({Panel.EVENTS, Panel.LOSS, Panel.STATUS})
            return replace(view, said=kept[:EVENTS_KEPT]), touched
        case DiskCame(seconds_left):
            touched = frozenset({Panel.METERS, Panel.MACHINE})
            return replace(view, disk_left_s=seconds_left), touched
        case SettingsCame():
            return view, NONE
        case FindingsCame(findings):
            return replace(view, findings=findings), frozenset({Panel.LOSS, Panel.QUEUE})
        case AwayRead():
            return replace(view, away=()), frozenset({Panel.EVENTS})
        case _ as never:
            assert_never(never)


def _status(view: View, status: Status, at_s: float) -> tuple[View, Touched]:
    old = view.status
    sample = view.sample_at_s
    age = status.training.last_sample_age_s
    if age is not None:
        sample = max(sample or 0.0, at_s - age)
    past = view.machine_past
    if status.machine is not None:
        past = (*past, status.machine)[-MACHINE_KEPT:]
    new = replace(
        view, status=status, heard_at_s=at_s, sample_at_s=sample, machine_past=past, link=Live()
    )
    if old is None or not isinstance(view.link, Live):
        return new, ALL_PANELS
    touched = {Panel.HEADER, Panel.STATUS}
    if (old.now or "")[:MINUTE] != (status.now or "")[:MINUTE]:
        touched.add(Panel.VERSIONS)  # their ages
        if figures.date_of(old.now) != figures.date_of(status.now):
            touched.add(Panel.EVENTS)  # what was today's shows its date from now on
    if old.machine != status.machine:
        touched |= {Panel.METERS, Panel.MACHINE}
    if old.training != status.training or old.model != status.model:
        touched |= {Panel.LOSS, Panel.QUEUE, Panel.INSPECTOR}
    if old.queue != status.queue or old.config != status.config:
        touched |= {Panel.QUEUE, Panel.INSPECTOR}
    return new, frozenset(touched)


def _history(view: View, history: History, seen: int | None) -> tuple[View, Touched]:
    known = {event.id for event in history.events}
    newer = tuple(event for event in view.said if event.id not in known)
    merged = sorted((*newer, *history.events), key=lambda event: event.id, reverse=True)
    away: tuple[Said, ...] = ()
    if seen is not None:
        rank = {"error": 0, "warning": 1}
        missed = [event for event in history.events if event.id > seen]
        away = tuple(sorted(missed, key=lambda event: (rank.get(event.level, 2), -event.id)))
    new = replace(view, said=tuple(merged[:EVENTS_KEPT]), away=away)
    return new, frozenset({Panel.EVENTS, Panel.LOSS})


def _steps(view: View, steps: tuple[Step, ...], at_s: float) -> tuple[View, Touched]:
    if not steps:
        return view, NONE
    curves = dict(view.curves)
    for name in _STEP_SERIES:
        points = tuple(
            Point(step=item.step, mean=value, at=item.at)
            for item in steps
            if (value := getattr(item, name)) is not None
        )
        if points:
            curves[name] = extended(curves.get(name, ()), points)
    new = replace(view, curves=curves, sample_at_s=at_s, heard_at_s=at_s)
    return new, frozenset({Panel.LOSS, Panel.STATUS})


def _jobs_changed(view: View, change: JobsChanged) -> tuple[View, Touched]:
    changed = {job.id: job for job in change.changed}
    removed = set(change.removed)
    kept = [job for job in view.jobs if job.id not in changed and job.id not in removed]
    jobs = tuple(sorted((*kept, *changed.values()), key=sort_key))
    total = view.jobs_total + len(jobs) - len(view.jobs)
    touched = frozenset({Panel.QUEUE, Panel.INSPECTOR, Panel.STATUS})
    return replace(view, jobs=jobs, jobs_total=max(total, len(jobs))), touched


def sort_key(job: JobView) -> tuple[int, int, str, int]:
    """The API's order: processing, waiting by place, failed and completed newest first."""
    rank = _ORDER.get(job.state, 4)
    if job.state == "waiting":
        return rank, job.place if job.place is not None else 1 << 40, "", job.id
    return rank, 0, _newest_first(job.finished_at or job.started_at or ""), -job.id


def _newest_first(moment: str) -> str:
    return "".join(chr(0x10FFFF - ord(char)) for char in moment) or chr(0x10FFFF)


def places_have_gaps(jobs: Iterable[JobView]) -> bool:
    """Whether the waiting jobs' places are not 1, 2, 3…: then the list must be read again."""
    places = [job.place for job in jobs if job.state == "waiting"]
    return places != list(range(1, len(places) + 1))


def extended(points: tuple[Point, ...], more: tuple[Point, ...]) -> tuple[Point, ...]:
    """`points` and `more`. A step at or before the last begins a new line there: after a
    rollback in place of what it undoes, so older points from that step on are dropped."""
    first = more[0].step
    if points and first <= points[-1].step:
        points = tuple(point for point in points if point.step < first)
    joined = points + more
    if len(joined) <= POINTS_KEPT:
        return joined
    half = len(joined) // 2
    return thinned(joined[:half]) + joined[half:]


def thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Neighbours merged two by two; extremes are kept."""
    pairs = zip(points[::2], points[1::2], strict=False)
    merged = tuple(merge(a, b) for a, b in pairs)
    return merged + points[len(points) - len(points) % 2 :]


def merge(a: Point, b: Point) -> Point:
    """One point that stands for two."""
    values = [value for value in (a.mean, b.mean) if value is not None]
    lows = [v for p in (a, b) if (v := p.min if p.min is not None else p.mean) is not None]
    highs = [v for p in (a, b) if (v := p.max if p.max is not None else p.mean) is not None]
    return Point(
        step=b.step,
        mean=sum(values) / len(values) if values else None,
        min=min(lows, default=None),
        max=max(highs, default=None),
        at=b.at,
    )


def newest(version: Iterable[Version]) -> Version | None:
    return max(version, key=lambda item: item.number, default=None)
