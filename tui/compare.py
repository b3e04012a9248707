"""The loss of a file that was trained before, laid over the file in hand.

Limits: which steps were a file's is told by the times of its start and its end, so the first and
the last step or two may be its neighbour's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from trainer_tui.safety.errors import Refused
from trainer_tui.tui.view import Job, Metrics, Point, View

if TYPE_CHECKING:
    from trainer_tui.tui.remote import Backend

POINTS_READ = 1500


@dataclass(frozen=True, slots=True)
class Earlier:
    """`points`: the file's loss; their steps count from its first."""

    job_id: int
    name: str
    points: tuple[Point, ...]

    @property
    def steps(self) -> float:
        return self.points[-1].step if self.points else 0.0

    def laid_at(self, start: float) -> tuple[Point, ...]:
        """The points as if the file had begun at step `start`."""
        return tuple(msgspec.structs.replace(p, step=p.step + start) for p in self.points)


def begin_of(view: View, last: float, steps: float) -> float:
    """The first step of the file in hand; when there is none, so that it ends at `last`."""
    training = view.training
    if training.job is not None and training.job.step is not None and training.global_step:
        return float(training.global_step - training.job.step)
    return last - steps


def span_of(job: Job, jobs: Sequence[Job]) -> tuple[str, str]:
    """From when to when it was trained: its end is only known by its commit, so the start of the
    next file counts when that came before."""
    start, end = job.started_at or "", job.finished_at or ""
    nexts = [other.started_at for other in jobs if other.started_at and other.started_at > start]
    return start, min([end, *nexts])


async def read_earlier(backend: Backend, view: View, job: Job) -> Earlier:
    """Read the file's part of the loss: once coarse to find it, once fine.

    Raises:
        Refused: there is no loss of that time any more.
        NoDaemon, Declined.
    """
    start, end = span_of(job, view.jobs)
    coarse = await _loss(backend, None, None)
    after = next((p.step for p in coarse if (p.at or "") > end), None)
    ahead = [p.step for p in coarse if (p.at or "") < start]
    fine = await _loss(backend, ahead[-1] if ahead else None, after)
    own = [point for point in fine if start <= (point.at or "") <= end]
    if len(own) < 2:
        raise Refused(f"the history has no loss of #{job.id}", "it may be older than the history")
    first = own[0].step
    moved = tuple(msgspec.structs.replace(point, step=point.step - first) for point in own)
    return Earlier(job.id, job.name, moved)


async def _loss(backend: Backend, low: float | None, high: float | None) -> list[Point]:
    wanted = {
        "series": "loss",
        "points": POINTS_READ,
        "from_step": None if low is None else int(low),
        "to_step": None if high is None else int(high),
    }
    answer = await backend.get("/v1/metrics", wanted)
    return msgspec.json.decode(answer, type=Metrics).series.get("loss", [])
