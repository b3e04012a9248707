"""The queue in memory: every job by id, the waiting ones in order, the contents that are known.

Built from the directories at any time; holds nothing that they do not say. Not thread-safe: the
store's lock is around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from trainer_tui.queue.job import Job
from trainer_tui.queue.line import Line, Work
from trainer_tui.queue.order import Waiting
from trainer_tui.safety.workspace import PRIORITIES


def _empty_orders() -> dict[str, Line]:
    return {priority: Line() for priority in PRIORITIES}


def _place_of(job: Job) -> Waiting:
    return Waiting(job.position, job.id)


@dataclass(slots=True)
class Index:
    by_id: dict[int, Job] = field(default_factory=dict)
    orders: dict[str, Line] = field(default_factory=_empty_orders)
    by_content: dict[str, tuple[int, ...]] = field(default_factory=dict)
    others: dict[str, set[int]] = field(default_factory=dict)
    highest: int | None = None  # position; an arrival goes behind it, whatever its priority

    def fill(self, jobs: Iterable[Job]) -> None:
        """Take in what an empty index is to hold; each id once."""
        lines: dict[str, list[tuple[Waiting, int]]] = {priority: [] for priority in PRIORITIES}
        for job in jobs:
            self._enter(job)
            if job.folder in lines:
                lines[job.folder].append((_place_of(job), job.meta.tokens))
        self.orders = {priority: Line(found) for priority, found in lines.items()}

    def put(self, job: Job) -> None:
        """Add a job or give it another state."""
        self.drop(job.id)
        self._enter(job)
        if job.folder in self.orders:
            self.orders[job.folder].add(_place_of(job), job.meta.tokens)

    def _enter(self, job: Job) -> None:
        self.by_id[job.id] = job
        self.highest = job.position if self.highest is None else max(self.highest, job.position)
        if job.folder not in self.orders:
            self.others.setdefault(job.folder, set()).add(job.id)
        if sha256 := job.meta.file_sha256:
            self.by_content[sha256] = (*self.by_content.get(sha256, ()), job.id)

    def drop(self, job_id: int) -> Job | None:
        old = self.by_id.pop(job_id, None)
        if old is None:
            return None
        if old.folder in self.orders:
            self.orders[old.folder].remove(_place_of(old))
        else:
            self.others[old.folder].discard(old.id)
        same = self.by_content.get(old.meta.file_sha256, ())
        if left := tuple(one for one in same if one != job_id):
            self.by_content[old.meta.file_sha256] = left
        else:
            self.by_content.pop(old.meta.file_sha256, None)
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
        return self.orders[job.folder].place_of(_place_of(job))

    def place(self, job_id: int) -> int | None:
        """Rank among the waiting, 1 = next; None when it does not wait."""
        job = self.by_id[job_id]
        if job.folder not in self.orders:
            return None
        ahead = sum(
            len(self.orders[priority]) for priority in PRIORITIES[: PRIORITIES.index(job.folder)]
        )
        return ahead + self.index_in_order(job) + 1

    def work(self) -> Work:
        """Of everything that waits."""
        return sum((line.work() for line in self.orders.values()), Work())

    def work_before(self, job: Job) -> Work:
        """Of what waits ahead of a waiting job."""
        higher = PRIORITIES[: PRIORITIES.index(job.folder)]
        own = self.orders[job.folder].work_before(_place_of(job))
        return sum((self.orders[priority].work() for priority in higher), own)

    def counts(self) -> dict[str, int]:
        """Jobs in each folder."""
        found = {priority: len(order) for priority, order in self.orders.items()}
        return found | {folder: len(ids) for folder, ids in self.others.items()}
