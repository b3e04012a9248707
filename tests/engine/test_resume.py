"""Resume is exact: whatever is killed, and whenever, the weights come out bit for bit the same."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.messages import Committed, StepDone, Train

ALL_KILL_POINTS = bool(os.environ.get("TRAINER_TUI_ALL_KILL_POINTS"))
SIZES = (17, 5, 31)
CONFIG = {"epochs": 2, "save_steps": 4}


def add_files(driver: Driver, sizes: tuple[int, ...] = SIZES) -> list[Train]:
    return [driver.add_job(toy_rows(size, seed)) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[str, int]:
    """Tensor hash and global step of the run that nobody disturbed."""
    from engine_driver import make_workspace

    root = tmp_path_factory.mktemp("oracle") / "ws"
    driver = Driver(make_workspace(root, tiny_model), CONFIG)
    add_files(driver)
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    return driver.tensor_hash(), newest.manifest.global_step


def finish(driver: Driver) -> tuple[str, int]:
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    return driver.tensor_hash(), newest.manifest.global_step


def kill_at_step(driver: Driver, step: int, kill: Callable[[], None]) -> None:
    """Let it run to a step and kill it there; how far its writer is by then is left to chance."""
    driver.start(halt=Halt(StepDone, step))
    driver.wait_for(StepDone, lambda message: message.global_step >= step)
    kill()
    driver.collect()


@pytest.mark.parametrize("seed", range(12) if ALL_KILL_POINTS else range(2))
def test_resume_is_bit_equal_after_any_kill(
    make_driver: Callable[..., Driver], oracle: tuple[str, int], seed: int
) -> None:
    driver = make_driver(**CONFIG)
    add_files(driver)
    rng = random.Random(seed)
    last = oracle[1]
    for step in sorted(rng.sample(range(1, last), 3)):
        # Killing the trainer alone leaves its writer to finish a commit that is under way.
        kill = driver.kill if rng.random() < 0.5 else driver.kill_all
        kill_at_step(driver, step, kill)
    assert finish(driver) == oracle


def kill_points() -> list[int]:
    # One save is 28 operations; the second save of the run is the one that has a predecessor.
    return list(range(1, 60)) if ALL_KILL_POINTS else [31, 52, 54, 56]


@pytest.mark.parametrize("operation", kill_points())
def test_resume_is_bit_equal_after_a_kill_before_a_durable_operation_of_a_save(
    make_driver: Callable[..., Driver], oracle: tuple[str, int], operation: int
) -> None:
    driver = make_driver(**CONFIG)
    add_files(driver)
    trap = driver.workspace.root / "trap.json"
    trap.write_text(json.dumps({"kill_writer_at": operation}))
    driver.start(entry="trap")
    driver.process.join(60)
    assert driver.process.exitcode == -9
    driver.collect()
    for folder in checkpoints.list_folders(driver.workspace.current_model):
        checkpoints.verify(folder)  # what is visible is whole
    trap.unlink()
    assert finish(driver) == oracle


def test_every_kept_row_of_six_files_is_seen_exactly_epochs_times_despite_kills(
    make_driver: Callable[..., Driver],
) -> None:
    sizes = (1, 23, 7, 2, 40, 11)
    driver = make_driver(epochs=2, save_steps=3)
    jobs = add_files(driver, sizes)
    (driver.workspace.root / "trap.json").write_text(json.dumps({"trace": True}))
    rng = random.Random(5)
    for step in (4, 11, 19, 26):
        kill_at_step(driver, step, rng.choice([driver.kill, driver.kill_all]))
    driver.run_until_done(entry="trap")

    newest = driver.newest()
    assert newest is not None
    by_step: dict[int, dict[str, object]] = {}
    for line in (driver.workspace.root / "trace.jsonl").read_text().splitlines():
        entry = json.loads(line)
        by_step[entry["step"]] = entry  # a step that was lost is run again under its number
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(1, newest.manifest.global_step + 1):
        entry = by_step[step]
        seen.update((int(str(entry["job"])), row) for row in entry["rows"])  # type: ignore[attr-defined]
    expected = {
        (job.job_id, row): 2
        for job, size in zip(jobs, sizes, strict=True)
        for row in range(1, size + 1)
    }
    assert seen == expected
    assert newest.manifest.tokens == sum(entry.tokens for entry in driver.ledger())
    assert sorted(entry.job_id for entry in driver.ledger()) == [1, 2, 3, 4, 5, 6]
    assert newest.manifest.cursors == []


def test_a_job_that_the_ledger_lists_is_not_trained_again(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    job = driver.add_job(toy_rows(20, 1))
    driver.run_until_done()
    before = driver.tensor_hash()
    # Killed between the checkpoint's rename and the queue's move: the job is still in processing.
    done = driver.workspace.queue / "recently_completed" / Path(job.folder).name
    done.rename(job.folder)
    driver.run_until_done()
    assert driver.tensor_hash() == before
    assert driver.steps() == []
    assert len(driver.ledger()) == 1


def test_a_resumed_trainer_says_where_it_goes_on_and_never_starts_at_step_0(
    make_driver: Callable[..., Driver],
) -> None:
    from trainer_tui.safety.messages import JobStarted, Ready

    driver = make_driver(save_steps=3)
    driver.add_job(toy_rows(60, 1))
    driver.start(halt=Halt(Committed))
    driver.wait_for(Committed)
    driver.kill_all()
    newest = driver.newest()
    assert newest is not None
    cursor = newest.manifest.cursors[0]
    driver.start()
    ready, started = driver.wait_for(Ready), driver.wait_for(JobStarted)
    assert ready.global_step == newest.manifest.global_step >= 3
    assert ready.checkpoint == newest.folder.name
    assert started.step_index == cursor.step_index == ready.global_step
    first = driver.wait_for(StepDone)
    assert first.global_step == ready.global_step + 1
    assert manifest.read(newest.folder).cursors == [cursor]


def test_a_file_that_is_queued_once_more_goes_on_where_the_state_that_came_back_left_it(
    make_driver: Callable[..., Driver], oracle: tuple[str, int]
) -> None:
    """The first file is half learnt in a state that a restore brought back; its job is done."""
    driver = make_driver(**CONFIG)
    jobs = add_files(driver)
    kill_at_step(driver, 3, driver.kill_all)
    driver.start(halt=Halt(Committed))
    driver.wait_for(Committed)
    driver.kill_all()
    newest = driver.newest()
    assert newest is not None
    [cursor] = newest.manifest.cursors
    started = next(job for job in jobs if job.job_id == cursor.job_id)
    again = msgspec.structs.replace(started, job_id=started.job_id + 10, others=(99,))
    driver.jobs[driver.jobs.index(started)] = again
    assert finish(driver) == oracle, "no row once more, none left out, the same options"
    newest = driver.newest()
    assert newest is not None and newest.manifest.cursors == []
    assert again.job_id in driver.ledger_ids() and started.job_id not in driver.ledger_ids()
