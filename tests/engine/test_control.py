"""Pause, resume, stop, skip, save and the daemon's death: each within one step, nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.engine.control import Control
from trainer_tui.safety.messages import (
    Committed,
    Failed,
    FromTrainer,
    JobRefused,
    JobStarted,
    JobTrained,
    Pause,
    Paused,
    Reconfigure,
    Resume,
    Resumed,
    SaveNow,
    Skip,
    StepDone,
    Stop,
    Stopping,
    WantJob,
    WantRollback,
)

LONG = 400  # rows: more steps than any of these tests waits for


def step_when(message: FromTrainer, step: int) -> bool:
    return isinstance(message, StepDone) and message.global_step == step


def ask_at(driver: Driver, step: int, *requests: object) -> None:
    """Start, and send requests when a step's figures come; the next step waits for them."""

    def ask(message: FromTrainer) -> None:
        if step_when(message, step):
            for request in requests:
                driver.send(request)  # type: ignore[arg-type]

    driver.on_message = ask
    driver.start(halt=Halt(StepDone, step, len(requests)))


def test_pause_is_acted_on_within_a_step_and_resume_goes_on(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(LONG, 1))
    ask_at(driver, 5, Pause())
    paused = driver.wait_for(Paused)
    assert paused.global_step in (5, 6)
    newest = driver.newest()
    assert newest is not None and newest.manifest.global_step == paused.global_step
    assert [m.reason for m in driver.all_of(Committed)] == ["pause"]
    steps = len(driver.steps())
    driver.send(SaveNow())
    driver.wait_for(Committed, lambda m: m.reason == "unchanged")
    assert len(driver.steps()) == steps  # nothing is trained while paused
    driver.send(Resume())
    driver.wait_for(Resumed)
    later = driver.wait_for(StepDone, lambda m: m.global_step > paused.global_step)
    assert later.global_step == paused.global_step + 1
    assert driver.stop() == 0


def test_stop_now_commits_within_a_step_and_exits_0(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    job = driver.add_job(toy_rows(LONG, 1))
    ask_at(driver, 4, Stop())
    stopping = driver.wait_for(Stopping)
    assert driver.wait_end() == 0
    assert stopping.global_step in (4, 5)
    newest = driver.newest()
    assert newest is not None and newest.manifest.global_step == stopping.global_step
    assert newest.manifest.cursors[0].step_index == stopping.global_step
    assert driver.in_processing() == [job]


def test_stop_after_the_file_finishes_it_first(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(min_save_interval_s=300.0)
    driver.add_job(toy_rows(40, 1))
    driver.add_job(toy_rows(40, 2))
    ask_at(driver, 2, Stop(after_file=True))
    assert driver.wait_end() == 0
    assert driver.ledger_ids() == {1}
    assert [job.job_id for job in driver.in_processing()] == [2]
    assert isinstance(driver.seen[-1], Stopping)


def test_resume_takes_a_stop_after_the_file_back(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(40, 1))
    driver.add_job(toy_rows(10, 2))
    ask_at(driver, 2, Stop(after_file=True), Resume())
    driver.wait_all_done()
    assert driver.stop() == 0


def test_pause_with_release_frees_the_process(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(LONG, 1))
    ask_at(driver, 3, Pause(release=True))
    assert driver.wait_end() == 0
    assert isinstance(driver.seen[-1], Stopping)
    assert driver.newest() is not None


def test_skip_keeps_the_cursor_and_a_retry_goes_on_from_there(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    job = driver.add_job(toy_rows(LONG, 1))
    ask_at(driver, 6, Skip(job.job_id))
    refused = driver.wait_for(JobRefused)
    assert refused.error_class == "skipped" and 0 < refused.fraction < 1
    driver.wait_for(Committed, lambda m: m.reason == "skip")
    newest = driver.newest()
    assert newest is not None
    cursor = newest.manifest.cursors[0]
    assert cursor.step_index in (6, 7)
    # What came before was kept, and nothing else waits.
    assert isinstance(driver.wait_for(WantJob, after=len(driver.steps())), WantJob)
    driver.on_message = lambda message: None
    driver._answered.clear()
    mark = len(driver.seen)
    driver.send(job)
    started = driver.wait_for(JobStarted, after=mark)
    assert started.step_index == cursor.step_index
    driver.wait_for(JobTrained)
    assert driver.stop() == 0
    entry = driver.ledger()[0]
    assert entry.steps == started.steps and entry.rows == LONG


def test_the_daemon_gone_the_trainer_commits_and_exits_0(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(LONG, 1))
    driver.start(halt=Halt(StepDone, 5))
    seen = driver.wait_for(StepDone, lambda m: m.global_step >= 5)
    driver.hang_up()
    assert driver.wait_end() == 0
    newest = driver.newest()
    assert newest is not None
    assert newest.manifest.global_step >= seen.global_step
    assert newest.manifest.reason == "daemon_gone"


def test_sigterm_commits_and_exits_0(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(LONG, 1))
    driver.start(halt=Halt(StepDone, 3))
    driver.wait_for(StepDone, lambda m: m.global_step >= 3)
    os.kill(driver.process.pid, signal.SIGTERM)
    assert driver.wait_end() == 0
    newest = driver.newest()
    assert newest is not None and newest.manifest.global_step >= 3


def test_a_signal_between_the_look_and_the_sleep_is_noticed() -> None:
    """It wakes nobody then; the word of it stands."""
    ours, theirs = multiprocessing.Pipe()
    control = Control(theirs)
    signalled = threading.Timer(0.2, setattr, (control, "_stop_signal", True))
    signalled.start()
    started_s = time.monotonic()
    control.wait(60)
    assert control.must_leave and time.monotonic() - started_s < 30
    signalled.join()
    control.close()
    ours.close()


def test_sigterm_wakes_an_idle_trainer(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.start()
    driver.wait_for(WantJob)
    os.kill(driver.process.pid, signal.SIGTERM)
    assert driver.wait_end() == 0
    assert driver.newest() is None  # nothing was trained, nothing is written


def test_live_settings_act_at_once_and_a_cool_down_ends_at_0(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(warmup_steps=0)
    driver.add_job(toy_rows(LONG, 1))
    ask_at(driver, 3, Reconfigure({"log_steps": 2, "cool_down_steps": 4}))
    zero = driver.wait_for(StepDone, lambda m: m.learning_rate == 0.0)
    driver.wait_for(StepDone, lambda m: m.global_step >= zero.global_step + 2)
    assert driver.stop() == 0
    steps = driver.steps()
    rates = [m.learning_rate for m in steps]
    assert rates[0] == pytest.approx(3e-3) and rates == sorted(rates, reverse=True)
    assert any(0 < rate < 3e-3 for rate in rates) and rates[-1] == 0.0
    cooling = [m.global_step for m in steps if m.learning_rate < 3e-3]
    assert all(step % 2 == 0 for step in cooling)


def test_a_second_trainer_waits_for_the_writer_lock(make_driver: Callable[..., Driver]) -> None:
    from trainer_tui.safety import locks

    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    lock = locks.acquire(driver.workspace.writer_lock)
    assert lock is not None
    driver.start()
    time.sleep(0.3)  # it must do nothing in this time; a longer wait would prove no more
    assert driver.seen == []
    lock.release()
    driver.wait_all_done()
    assert driver.stop() == 0


def test_a_stop_while_it_waits_for_the_lock_ends_it_at_once(
    make_driver: Callable[..., Driver],
) -> None:
    from trainer_tui.safety import locks

    driver = make_driver()
    lock = locks.acquire(driver.workspace.writer_lock)
    assert lock is not None
    driver.start()
    driver.send(Stop())
    assert driver.wait_end() == 0
    assert isinstance(driver.seen[-1], Stopping)
    lock.release()


def test_a_crash_says_what_and_where_and_leaves_it_on_disk(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(40, 1))
    (driver.workspace.root / "trap.json").write_text(json.dumps({"raise_steps": [4]}))
    driver.start(entry="trap")
    failed = driver.wait_for(Failed)
    assert (failed.error_class, failed.phase, failed.job_id) == ("code_bug", "micro-step", 1)
    assert "ZeroDivisionError" in failed.stack and failed.global_step == 3
    assert driver.wait_end() == 1
    report = json.loads((driver.workspace.incidents / "run1" / "error.json").read_bytes())
    assert report["message"] == failed.message
    assert report["rows"] and set(report["rows"]) <= set(range(1, 41))


def test_sigusr1_shows_the_stacks_of_all_threads(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.start()
    driver.wait_for(WantJob)
    os.kill(driver.process.pid, signal.SIGUSR1)
    output = driver.workspace.logs / "trainer.out"
    deadline = time.monotonic() + 20
    while "engine/loop.py" not in output.read_text():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
    assert output.read_text().count("Thread 0x") >= 2
    assert driver.stop() == 0


def test_the_rung_rollback_sets_the_file_aside_committed_and_asks_for_the_version_before(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(ladder={"divergence": ["rollback"]})
    driver.add_job(toy_rows(LONG, 1))
    (driver.workspace.root / "trap.json").write_text(json.dumps({"spike_from": 30}))
    driver.start(entry="trap")
    wish = driver.wait_for(WantRollback)
    after = driver.wait_for(WantJob, after=len(driver.steps()))
    assert driver.stop() == 0
    order = [type(m) for m in driver.seen if isinstance(m, JobRefused | WantRollback | WantJob)]
    assert order[-3:] == [JobRefused, WantRollback, WantJob] and after is not None
    (refused,) = driver.all_of(JobRefused)
    assert (wish.job_id, wish.reason, wish.text) == (1, "divergence", refused.message)
    newest = driver.newest()
    assert newest is not None and newest.manifest.reason == "skip"
    assert newest.manifest.cursors[0].step_index == newest.manifest.global_step >= 30


def test_stop_after_file_ends_also_with_a_file_that_is_set_aside(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(LONG, 1))
    driver.add_job(toy_rows(LONG, 2))
    ask_at(driver, 2, Stop(after_file=True), Skip(1))
    assert driver.wait_for(JobRefused).job_id == 1
    assert driver.wait_for(Stopping).reason == "stopped after the file"
    assert driver.wait_end() == 0
    assert [m.job_id for m in driver.all_of(JobStarted)] == [1]
