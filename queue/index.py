"""The queue in memory: every job by id, the waiting ones in order, the contents that are known.

Built from the directories at any time; holds nothing that they do not say. Not thread-safe: the
store's lock is around it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer_tui.queue.job import Job
from trainer_tui.queue.order import Waiting
from trainer_tui.safety.workspace import PRIORITIES


def _empty_orders() -> dict[str, list[Waiting]]:
    return {priority: [] for priority in PRIORITIES}


@dataclass(slots=True)
class Index:
    by_id: dict[int, Job] = field(default_factory=dict)
    orders: dict[str, list[Waiting]] = field(default_factory=_empty_orders)
    by_content: dict[str, list[int]] = field(default_factory=dict)
    others: dict[str, set[int]] = field(default_factory=dict)
    highest: int | None = None  # position; an arrival goes behind it, whatever its priority

    def put(self, job: Job) -> None:
        """Add a job or give it another state."""
        self.drop(job.id)
        self.by_id[job.id] = job
        self.highest = job.position if self.highest is None else max(self.highest, job.position)
        if job.folder in self.orders:
            bisect.insort(self.orders[job.folder], Waiting(job.position, job.id))
        else:
            self.others.setdefault(job.folder, set()).add(job.id)
        if job.meta.file_sha256:
            self.by_content.setdefault(job.meta.file_sha256, []).append(job.id)

    def drop(self, job_id: int) -> Job | None:
        old = self.by_id.pop(job_id, None)
        if old is None:
            return None
        if old.folder in self.orders:
            order = self.orders[old.folder]
            at = bisect.bisect_left(order, Waiting(old.position, old.id))
            if at < len(order) and order[at].job_id == old.id:
                del order[at]
        else:
            self.others[old.folder].discard(old.id)
        same = self.by_content.get(old.meta.file_sha256, [])
        if job_id in same:
            same.remove(job_id)
            if not same:
                del self.by_content[old.meta.file_sha256]
        return old

    def waiting(self) -> Iterator[Job]:
        """In training order."""
        for priority in PRIORITIES:
            for waiting in self.orders[priority]:
                yield self.by_id[waiting.job_id]

    def in_folder(self, folder: str) -> list[Job]:
        """Jobs of a folder that has no order of its own, oldest position first."""
        jobs = [self.by_id[job_id] for job_id in self.others.get(folder, ())]
        return sorted(jobs, key=lambda job: (job.position, job.id))

    def index_in_order(self, job: Job) -> int:
        return bisect.bisect_left(self.orders[job.folder], Waiting(job.position, job.id))

    def place(self, job_id: int) -> int | None:
        """Rank among the waiting, 1 = next; None when it does not wait."""
        job = self.by_id[job_id]
        if job.folder not in self.orders:
            return None
        ahead = sum(
            len(self.orders[priority]) for priority in PRIORITIES[: PRIORITIES.index(job.folder)]
        )
        return ahead + self.index_in_order(job) + 1

    def counts(self) -> dict[str, int]:
        """Jobs in each folder."""
        found = {priority: len(order) for priority, order in self.orders.items()}
        return found | {folder: len(ids) for folder, ids in self.others.items()}
