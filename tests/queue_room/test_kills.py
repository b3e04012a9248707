"""Killed before any durable operation, every file is in exactly one place, and work goes on.

A forked child runs a transaction and dies (`os._exit`, so no clean-up runs) before its n-th
durable operation, for every n. Then a new process's first steps are done here and checked.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainer_tui.daemon.inbox import admit
from trainer_tui.queue.intake import Inbox
from trainer_tui.queue.job import JobError
from trainer_tui.queue.originals import recover, remove_original
from trainer_tui.queue.report import Context
from trainer_tui.queue.report_context import load_template
from trainer_tui.queue.staging import Order, stage
from trainer_tui.queue.store import Queue
from trainer_tui.safety import durable, hashing
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import QUEUE_FOLDERS, Workspace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
KILLED, DONE, RAISED = 99, 0, 1


@pytest.fixture
def fresh() -> Iterator[Callable[[], Workspace]]:
    """A new workspace in memory at each call; all of them go at the end."""
    parent = Path(tempfile.mkdtemp(dir=MEMORY))

    def make() -> Workspace:
        root = Path(tempfile.mkdtemp(dir=parent))
        (root / "config.toml").touch()
        workspace = Workspace(root)
        workspace.prepare()
        return workspace

    yield make
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def context(model_folder: Path) -> Context:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    template, _ = load_template(model_folder)
    return Context(Config(), template)


def killed_before(number: int, act: Callable[[], None]) -> bool:
    """Run `act` in a child that dies before its `number`-th operation; False when it finished."""
    child = os.fork()
    if child == 0:
        count = 0

        def observe(operation: str, path: Path) -> None:
            nonlocal count
            count += 1
            if count == number:
                os._exit(KILLED)

        try:
            with durable.observed(observe):
                act()
            os._exit(DONE)
        except BaseException:  # noqa: BLE001 - the child must never return into pytest
            os._exit(RAISED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (KILLED, DONE), f"the transaction raised at operation {number}"
    return code == KILLED


def every_kill(
    prepare: Callable[[], Workspace],
    act: Callable[[Workspace], None],
    check: Callable[[Workspace], None],
) -> int:
    """Returns how many operations the transaction has."""
    number = 1
    while True:
        workspace = prepare()
        killed = killed_before(number, lambda: act(workspace))  # noqa: B023 - called at once
        check(workspace)
        if not killed:
            return number - 1
        number += 1


def places_of(workspace: Workspace, sha256: str) -> list[str]:
    """Where a content is: inbox and jobs; staging does not count."""
    found = []
    for folder in (workspace.inbox / "high", workspace.inbox, workspace.inbox / "low"):
        for path in folder.iterdir():
            if path.is_file() and hashing.hash_file(path) == sha256:
                found.append(f"inbox/{path.name}")
    for name in QUEUE_FOLDERS:
        for job in (workspace.queue / name).iterdir():
            if hashing.hash_file(job / "data.jsonl") == sha256:
                found.append(f"{name}/{job.name}")
    return found


def take_all(workspace: Workspace, queue: Queue, context: Context) -> None:
    inbox = Inbox(workspace)
    inbox.look(0.0)
    for candidate in inbox.look(2.0).ready:
        staged = stage(workspace, Order(candidate.path, candidate.priority), context)
        job = queue.admit(staged.folder, candidate.priority)
        remove_original(candidate.path, job)


def test_a_file_is_never_lost_or_doubled_on_its_way_through_the_queue(
    fresh: Callable[[], Workspace], context: Context, toys
) -> None:
    files = {file.name: "\n".join(file.lines[:3]).encode() for file in toys.files[:2]}
    hashes: dict[str, str] = {}

    def prepare() -> Workspace:
        workspace = fresh()
        for name, data in files.items():
            path = workspace.inbox / name
            path.write_bytes(data)
            hashes[name] = hashing.hash_file(path)
        return workspace

    def act(workspace: Workspace) -> None:
        queue = Queue(workspace)
        take_all(workspace, queue, context)
        job = queue.claim_next(NOW)
        assert job is not None
        queue.end_attempt(job.id, "progress")
        queue.complete(job.id)
        second = queue.claim_next(NOW)
        assert second is not None
        queue.fail(second.id, JobError(error_class="data_error", message="no"))
        queue.retry(second.id)

    def check(workspace: Workspace) -> None:
        queue = Queue(workspace)
        recover(workspace, queue.jobs())
        for sha256 in hashes.values():
            assert len(places_of(workspace, sha256)) == 1
        assert queue.reconcile() == []
        take_all(workspace, queue, context)
        jobs = queue.jobs()
        assert sorted(job.name for job in jobs) == sorted(files)
        assert len({job.id for job in jobs}) == len(files)
        for job in jobs:
            assert queue.path(job).joinpath("report.json").is_file()
            if job.state == "failed":
                assert queue.error(job).error_class == "data_error"
        assert list(workspace.queue.glob(".staging-*")) == []
        assert not any(path.is_file() for path in workspace.inbox.iterdir())

    assert every_kill(prepare, act, check) > 50


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_operation_that_fails_leaves_nothing_behind_and_the_file_is_taken_later(
    number: int, fresh: Callable[[], Workspace], context: Context, toys
) -> None:
    """The disk refuses the n-th operation, for every n; the daemon lives and tries again."""
    data = "\n".join(toys.files[0].lines[:3]).encode()

    def take(workspace: Workspace, queue: Queue, path: Path) -> None:
        staged = stage(workspace, Order(path), context)
        job = admit(queue, staged.folder, "normal", again=False, added_by="inbox")
        remove_original(path, job)

    for operation in itertools.count(1):
        workspace = fresh()
        queue, path = Queue(workspace), workspace.inbox / "a.jsonl"
        path.write_bytes(data)
        sha256, done = hashing.hash_file(path), 0

        def observe(name: str, path: Path) -> None:
            nonlocal done
            done += 1
            if done == operation:  # noqa: B023 - called at once
                raise OSError(number, os.strerror(number))

        with contextlib.suppress(OSError, Refused), durable.observed(observe):
            take(workspace, queue, path)
        assert not list(workspace.queue.glob(".staging-*")), f"left behind by operation {operation}"
        for _ in range(2):  # what the daemon does next; a job whose original stays is known as that
            if path.exists():
                with contextlib.suppress(Refused):
                    take(workspace, queue, path)
        queue = Queue(workspace)
        recover(workspace, queue.jobs())
        assert not queue.findings
        (place,) = places_of(workspace, sha256)
        assert place.startswith("normal/"), (operation, place)
        if done < operation:
            break  # there is no such operation: it went through
    assert operation > 20


def test_an_attempt_is_on_disk_before_the_job_can_start(
    fresh: Callable[[], Workspace], stage
) -> None:
    def prepare() -> Workspace:
        workspace = fresh()
        Queue(workspace).admit(stage(workspace, "a"), "normal")
        return workspace

    def check(workspace: Workspace) -> None:
        for job in Queue(workspace).processing():
            assert len(job.meta.attempts) == 1

    assert every_kill(prepare, lambda workspace: Queue(workspace).claim_next(NOW), check) >= 5


def test_a_move_that_renumbers_keeps_the_order_at_every_kill(
    fresh: Callable[[], Workspace], stage
) -> None:
    names = [f"f{number}" for number in range(10)]

    def prepare() -> Workspace:
        workspace = fresh()
        queue = Queue(workspace)
        jobs = [queue.admit(stage(workspace, name), "normal") for name in names]
        for position, job in enumerate(jobs):
            queue.put_back(job.id, "normal", position)  # no room anywhere
        return workspace

    def act(workspace: Workspace) -> None:
        queue = Queue(workspace)
        by_name = {job.name: job.id for job in queue.jobs()}
        queue.move(by_name["f9"], after=by_name["f4"])

    old = names
    new = ["f0", "f1", "f2", "f3", "f4", "f9", "f5", "f6", "f7", "f8"]
    seen = set()

    def check(workspace: Workspace) -> None:
        found = [job.name for job in Queue(workspace).waiting()]
        assert found in (old, new)
        seen.add(tuple(found))

    assert every_kill(prepare, act, check) > 20
    assert seen == {tuple(old), tuple(new)}


def test_removal_and_its_undo_never_lose_a_job(fresh: Callable[[], Workspace], stage) -> None:
    def prepare() -> Workspace:
        workspace = fresh()
        Queue(workspace).admit(stage(workspace, "a"), "low")
        return workspace

    def act(workspace: Workspace) -> None:
        queue = Queue(workspace)
        queue.restore_removed(queue.remove(1))

    def check(workspace: Workspace) -> None:
        queue = Queue(workspace)
        if not queue.jobs():
            queue.restore_removed(1)
        assert [job.name for job in queue.waiting()] == ["a"]

    assert every_kill(prepare, act, check) >= 4
