"""Moves of waiting jobs: to another place, to another priority; each is one rename.

A move into a spot without room renumbers its neighbourhood first, by moves that keep the order.
"""

from __future__ import annotations

from trainer_tui.queue.base import QueueBase
from trainer_tui.queue.job import Job
from trainer_tui.queue.line import Line
from trainer_tui.queue.order import NoRoom, Waiting, position_between, renumbering
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import PRIORITIES


class QueueMoves(QueueBase):
    """See `Queue`."""

    def move(
        self,
        job_id: int,
        *,
        before: int | None = None,
        after: int | None = None,
        place: str | None = None,
        if_revision: int | None = None,
    ) -> Job:
        """Put a waiting job directly before or after another (taking its priority), or at the
        "top" or "bottom" of its own.

        Raises:
            NotFound, Stale.
            Refused: it does not wait, the other does not, or not exactly one target is named.
        """
        with self._lock:
            job = self.get(job_id)
            target = before if before is not None else after
            self._fresh(if_revision, job_id, *([] if target is None else [target]))
            self._must_be(job, *PRIORITIES)
            if [before, after, place].count(None) != 2:
                raise Refused("name one of before, after and place")
            if target is None:
                if place not in ("top", "bottom"):
                    raise Refused(f"place is top or bottom, not {place!r}")
                order = self.index.orders[job.folder]
                at = 0 if place == "top" else len(order)
                return self._put_at(job, job.folder, at)
            if target == job_id:
                return job
            other = self.get(target)
            self._must_be(other, *PRIORITIES)
            at = self.index.index_in_order(other) + (0 if before is not None else 1)
            return self._put_at(job, other.folder, at)

    def set_priority(self, job_id: int, priority: str, *, if_revision: int | None = None) -> Job:
        """Another priority at the same position, so that it stands there as if it had arrived
        there. For a job that does not wait: the priority of its next retry."""
        check_priority(priority)
        with self._lock:
            job = self.get(job_id)
            self._fresh(if_revision, job_id)
            if job.folder not in PRIORITIES:
                return self._edit(job, priority=priority)
            return self._to_priority(job, priority)

    def put_back(self, job_id: int, priority: str, position: int) -> Job:
        """Undo a move: the same priority and position, or right behind whoever has it now."""
        check_priority(priority)
        with self._lock:
            job = self.get(job_id)
            self._must_be(job, *PRIORITIES)
            return self._to_priority(job, priority, position)

    def _to_priority(self, job: Job, priority: str, position: int | None = None) -> Job:
        wanted = job.position if position is None else position
        order = self.index.orders[priority]
        at = order.place_of(Waiting(wanted, 0))
        taken = at < len(order) and order[at].position == wanted  # unique within a priority
        if not taken or order[at].job_id == job.id:
            return self._rename(job, priority, wanted)
        return self._put_at(job, priority, at + 1)

    def _put_at(self, job: Job, priority: str, at: int) -> Job:
        """Rename so that the job stands at index `at` of the order as it is now."""
        order = self.index.orders[priority]
        before, after = self._neighbours(order, at, job.id)
        if job.folder == priority and _stands_between(job, before, after):
            return job
        try:
            position = position_between(before, after)
        except NoRoom:
            for moved in renumbering(list(order), at):
                self._rename(self.get(moved.job_id), priority, moved.position)
            job = self.get(job.id)
            before, after = self._neighbours(order, at, job.id)
            position = position_between(before, after)
        return self._rename(job, priority, position)

    @staticmethod
    def _neighbours(order: Line, at: int, job_id: int) -> tuple[Waiting | None, Waiting | None]:
        """Who stands around index `at`, the job itself not counted."""
        low, high = at - 1, at
        if low >= 0 and order[low].job_id == job_id:
            low -= 1
        if high < len(order) and order[high].job_id == job_id:
            high += 1
        return (order[low] if low >= 0 else None), (order[high] if high < len(order) else None)


def check_priority(priority: str) -> None:
    if priority not in PRIORITIES:
        raise Refused(f"{priority!r} is no priority", f"one of {', '.join(PRIORITIES)}")


def _stands_between(job: Job, before: Waiting | None, after: Waiting | None) -> bool:
    above = before is None or before.position < job.position
    return above and (after is None or job.position < after.position)
