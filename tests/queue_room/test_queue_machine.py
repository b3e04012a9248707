"""The queue against a model of lists, over random histories with restarts in between."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from trainer_tui.queue.job import JobError, Meta, encode_meta, parse_directory_name
from trainer_tui.queue.store import Queue
from trainer_tui.safety.errors import NotFound, Refused
from trainer_tui.safety.workspace import PRIORITIES, QUEUE_FOLDERS, Workspace

priorities = st.sampled_from(PRIORITIES)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # order is tested here, not fsync


class QueueMachine(RuleBasedStateMachine):
    """`waiting` holds ids in order for each priority; `other` the folder of every other job."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY))
        (self.root / "config.toml").touch()
        self.workspace = Workspace(self.root)
        self.workspace.prepare()
        self.queue = Queue(self.workspace)
        self.waiting: dict[str, list[int]] = {priority: [] for priority in PRIORITIES}
        self.other: dict[int, str] = {}
        self.held: set[int] = set()
        self.home: dict[int, str] = {}
        self.trash: dict[int, str] = {}
        self.count = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(target=jobs, priority=priorities)
    def admit(self, priority: str) -> int:
        self.count += 1
        data = f"content {self.count}".encode()
        staged = self.workspace.queue / f".staging-{self.count}"
        staged.mkdir()
        (staged / "data.jsonl").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        meta = Meta(original_name=f"f{self.count}", file_sha256=digest, kept_rows=1, rows=1)
        (staged / "meta.json").write_bytes(encode_meta(meta))
        job = self.queue.admit(staged, priority)
        self.waiting[priority].append(job.id)
        return job.id

    @rule()
    def claim(self) -> None:
        job = self.queue.claim_next(NOW)
        order = [one for priority in PRIORITIES for one in self.waiting[priority]]
        wanted = next((one for one in order if one not in self.held), None)
        assert (job.id if job else None) == wanted
        if job is not None:
            assert job.meta.attempts
            self._take_out(job.id)
            self.other[job.id] = "processing"

    def _take_out(self, job_id: int) -> None:
        for priority, order in self.waiting.items():
            if job_id in order:
                order.remove(job_id)
                self.home[job_id] = priority

    def _where(self, job_id: int) -> str | None:
        for priority, order in self.waiting.items():
            if job_id in order:
                return priority
        return self.other.get(job_id)

    @rule(job=jobs)
    def complete(self, job: int) -> None:
        if self._where(job) == "processing":
            self.queue.complete(job)
            self.other[job] = "recently_completed"

    @rule(job=jobs)
    def fail(self, job: int) -> None:
        where = self._where(job)
        error = JobError(error_class="data_error", message="no")
        if where in (*PRIORITIES, "processing"):
            self.queue.fail(job, error)
            self._take_out(job)
            self.other[job] = "failed"
            self.held.discard(job)
            if self.queue.get(job).meta.held:
                self.held.add(job)
        else:
            self._refused(lambda: self.queue.fail(job, error))

    @rule(job=jobs)
    def retry_or_requeue(self, job: int) -> None:
        where = self._where(job)
        if where == "failed":
            found = self.queue.retry(job)
        elif where == "processing":
            found = self.queue.requeue(job)
        else:
            return
        assert found.priority == self.home[job]
        del self.other[job]
        self._insert_by_position(job, found.folder)

    def _insert_by_position(self, job: int, priority: str) -> None:
        """Coming back to an old position: the model asks for the position, then checks order."""
        order = self.waiting[priority]
        position = self.queue.get(job).position
        at = sum(self.queue.get(one).position < position for one in order)
        order.insert(at, job)

    @rule(job=jobs, other=jobs, ahead=st.booleans())
    def move(self, job: int, other: int, ahead: bool) -> None:
        both_wait = {self._where(job), self._where(other)} <= set(PRIORITIES)
        target = {"before": other} if ahead else {"after": other}
        if not both_wait:
            self._refused(lambda: self.queue.move(job, **target))
            return
        self.queue.move(job, **target)
        if job != other:
            self._take_out(job)
            priority = self._where(other)
            order = self.waiting[priority]
            order.insert(order.index(other) + (0 if ahead else 1), job)

    @rule(job=jobs, place=st.sampled_from(("top", "bottom")))
    def move_to_end(self, job: int, place: str) -> None:
        priority = self._where(job)
        if priority not in PRIORITIES:
            self._refused(lambda: self.queue.move(job, place=place))
            return
        self.queue.move(job, place=place)
        order = self.waiting[priority]
        order.remove(job)
        order.insert(0 if place == "top" else len(order), job)

    @rule(job=jobs, priority=priorities)
    def set_priority(self, job: int, priority: str) -> None:
        where = self._where(job)
        if where in PRIORITIES:
            self.queue.set_priority(job, priority)
            self._take_out(job)
            self._insert_by_position(job, priority)

    @rule(job=jobs)
    def hold_or_not(self, job: int) -> None:
        if self._where(job) not in PRIORITIES:
            self._refused(lambda: self.queue.hold(job))
        elif job in self.held:
            self.queue.unhold(job)
            self.held.discard(job)
        else:
            self.queue.hold(job)
            self.held.add(job)

    @rule(job=consumes(jobs))
    def remove(self, job: int) -> None:
        where = self._where(job)
        if where is None:
            return
        if where == "processing":
            self._refused(lambda: self.queue.remove(job))
            return
        self.trash[job] = self.queue.remove(job)
        self._take_out(job)
        self.other.pop(job, None)

    @rule(target=jobs, by_name=st.booleans())
    def undo_remove(self, by_name: bool) -> int:
        if not self.trash:
            return self.admit(priority="normal")
        job, name = self.trash.popitem()
        found = self.queue.restore_removed(name if by_name else job)
        if found.folder in PRIORITIES:
            self._insert_by_position(job, found.folder)
        else:
            self.other[job] = found.folder
        return job

    @rule()
    def restart(self) -> None:
        before = self.queue.jobs()
        self.queue = Queue(self.workspace)
        assert not self.queue.findings
        assert [job.directory for job in self.queue.waiting()] == [
            job.directory for job in before if job.state == "waiting"
        ]
        assert {job.id: job for job in before} == {job.id: job for job in self.queue.jobs()}

    @rule()
    def reconcile_finds_nothing(self) -> None:
        assert self.queue.reconcile() == []

    def _refused(self, act) -> None:
        before = self.queue.revision
        try:
            act()
        except (Refused, NotFound):
            assert self.queue.revision == before
        else:
            raise AssertionError("should have been refused")

    @invariant()
    def memory_model_and_disk_agree(self) -> None:
        wanted = [one for priority in PRIORITIES for one in self.waiting[priority]]
        assert [job.id for job in self.queue.waiting()] == wanted
        assert [self.queue.place(one) for one in wanted] == list(range(1, len(wanted) + 1))
        on_disk: dict[str, list[int]] = {}
        for folder in QUEUE_FOLDERS:
            names = sorted(entry.name for entry in (self.workspace.queue / folder).iterdir())
            on_disk[folder] = [parse_directory_name(name).id for name in names]
        for priority in PRIORITIES:
            assert on_disk[priority] == self.waiting[priority]
            positions = {self.queue.get(one).position for one in self.waiting[priority]}
            assert len(positions) == len(self.waiting[priority])
        for folder in ("processing", "recently_completed", "failed"):
            wanted_here = {job for job, where in self.other.items() if where == folder}
            assert set(on_disk[folder]) == wanted_here


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
