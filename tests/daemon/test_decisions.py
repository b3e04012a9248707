"""What the daemon decides: pure functions, every branch that a person would notice."""

from __future__ import annotations

import asyncio

import pytest

from trainer_tui.daemon import after_end, decide, eta
from trainer_tui.daemon.after_end import End, Record, judge
from trainer_tui.daemon.bus import READER_EVENTS, Bus
from trainer_tui.daemon.decide import (
    Absent,
    BecomeStopped,
    Facts,
    Nothing,
    Offer,
    Present,
    Send,
    Spawn,
)
from trainer_tui.daemon.figures import Figures
from trainer_tui.queue.line import Work
from trainer_tui.safety import crash
from trainer_tui.safety.messages import (
    Failed,
    LetGo,
    NothingWaits,
    Pause,
    Resume,
    StepDone,
    Stop,
    TakeUp,
)

READY = Present(ready=True)
HUNGRY = Present(ready=True, hungry=True)


@pytest.mark.parametrize(
    ("facts", "action"),
    [
        (Facts("run", Absent(), work=True), Spawn()),
        (Facts("run", Absent()), Nothing()),
        (Facts("run", Absent(3.0), work=True), Nothing()),
        (Facts("run", Absent(), work=True, blocker="no model"), Nothing()),
        (Facts("run", Absent(), work=True, hold="hot"), Nothing()),
        (Facts("run", Absent(), work=True, ending=True), Nothing()),
        (Facts("pause", Absent(), work=True), Nothing()),
        (Facts("stopped", Absent(), work=True), Nothing()),
        (Facts("degraded", Absent(), work=True), Nothing()),
        (Facts("stop_after_file", Absent(), work=True), BecomeStopped()),
        (Facts("stop_after_file", Absent(), work=True, started_work=True), Spawn()),
        (Facts("run", HUNGRY, work=True), Offer()),
        (Facts("run", HUNGRY), Send(NothingWaits())),
        (Facts("run", Present(True, True, told_nothing_waits=True)), Nothing()),
        (Facts("run", Present(True, True, True, idle_s=900)), Send(Stop())),
        (Facts("run", HUNGRY, work=True, renew=True), Send(Stop())),
        (Facts("run", READY, work=True), Nothing()),
        (Facts("run", Present(True, paused=True)), Send(Resume())),
        (Facts("run", Present(True, asked="pause")), Send(Resume())),
        (Facts("run", Present(True, asked="stop_after_file")), Send(Resume())),
        (Facts("run", Present(True, True, asked="stop"), work=True), Nothing()),
        (Facts("run", READY, ending=True), Send(Stop())),
        (Facts("run", Present(True, asked="stop"), ending=True), Nothing()),
        (Facts("run", READY, hold="hot"), Send(Pause())),
        (Facts("pause", READY), Send(Pause())),
        (Facts("pause", Present(True, asked="pause")), Nothing()),
        (Facts("pause", Present(True, paused=True)), Nothing()),
        (Facts("pause", Present(True, paused=True), release=True), Send(Pause(release=True))),
        (Facts("pause", HUNGRY, work=True), Send(Pause())),
        (Facts("stopped", READY), Send(Stop())),
        (Facts("stop_after_file", READY, in_hand=True), Send(Stop(after_file=True))),
        (Facts("stop_after_file", READY, started_work=True), Nothing()),
        (Facts("stop_after_file", Present(False), started_work=True), Nothing()),
        (Facts("stop_after_file", HUNGRY, work=True, started_work=True), Offer()),
        (Facts("stop_after_file", HUNGRY, work=True), Send(Stop(after_file=True))),
        (Facts("run", Absent(), work=True, restoring=True), Nothing()),
        (Facts("run", READY, work=True, restoring=True), Send(LetGo())),
        (Facts("pause", Present(True, paused=True), restoring=True), Send(LetGo())),
        (Facts("run", Present(True, asked="let_go"), restoring=True), Nothing()),
        (Facts("run", Present(False), work=True, restoring=True), Send(Stop())),
        (Facts("run", READY, work=True, restoring=True, exclusive=True), Send(Stop())),
        (Facts("stopped", Present(True, asked="let_go"), restoring=True), Send(Stop())),
        (Facts("run", Present(True, asked="stop"), restoring=True), Nothing()),
        (Facts("run", Present(True, asked="let_go", aside=True), work=True), Send(TakeUp())),
        (Facts("pause", Present(True, asked="let_go", aside=True)), Send(TakeUp())),
        (Facts("run", Present(True, True, asked="take_up"), work=True), Nothing()),
        (Facts("pause", Present(True, asked="take_up")), Nothing()),
        (Facts("stop_after_file", Present(True, True, asked="take_up"), work=True), Nothing()),
        (Facts("stopped", Present(True, asked="take_up")), Send(Stop())),
        (Facts("run", Present(True, asked="take_up"), restoring=True), Nothing()),
        (Facts("run", Present(False, reloads=True), restoring=True), Nothing()),
        (Facts("stop_after_file", Present(True, asked="stop_after_file")), Nothing()),
    ],
)
def test_next_action_follows_from_wish_and_state(facts, action):
    assert decide.decide(facts) == action


def finding(failed: Failed | None = None, exit_code: int = 1) -> crash.Finding:
    reported = None
    if failed is not None:
        reported = {"error_class": failed.error_class, "message": failed.message}
    return crash.classify(crash.Evidence(exit_code, reported))


def crashed(in_hand: int | None = None, attempts: int = 0) -> End:
    return End(1, False, False, True, in_hand, attempts)


def test_restarts_are_bounded_and_a_commit_begins_anew():
    record, waits = Record(), []
    for attempt in (1, 2, 3):
        verdict, record = judge(crashed(7, attempt), finding(), record, 3, (1.0, 5.0, 30.0))
        waits.append((verdict.wait_s, verdict.park, verdict.then))
    assert waits == [(1.0, False, "restart"), (5.0, False, "restart"), (0.0, True, "restart")]


def test_two_files_parked_in_a_row_for_one_reason_end_the_restarting():
    _, record = judge(crashed(7, 3), finding(), Record(), 3, (1.0,))
    verdict, _ = judge(crashed(8, 3), finding(), record, 3, (1.0,))
    assert verdict.park and verdict.then == "degrade"
    other = finding(Failed("cuda_oom", "no memory", "", "x", 0))
    verdict, _ = judge(crashed(8, 3), other, record, 3, (1.0,))
    assert verdict.then == "restart", "another reason"


def test_a_files_own_fault_parks_it_at_once_and_never_degrades():
    bad = finding(Failed("data_error", "no rows", "", "data", 0))
    record = Record()
    for job in (1, 2, 3, 4):
        verdict, record = judge(crashed(job, 1), bad, record, 3, (1.0,))
        assert verdict.park and verdict.then == "restart"


def test_crashes_without_a_file_degrade_and_some_reasons_do_at_once():
    record = Record()
    kinds = []
    for _ in range(3):
        verdict, record = judge(crashed(), finding(), record, 3, (1.0,))
        kinds.append(verdict.then)
    assert kinds == ["restart", "restart", "degrade"]
    for name in ("checkpoint_corrupt", "config", "gpu_hardware", "read_only"):
        verdict, _ = judge(crashed(), finding(Failed(name, "x", "", "x", 0)), Record(), 3, (1.0,))
        assert verdict.then == "degrade", name
    verdict, _ = judge(
        crashed(), finding(Failed("disk_full", "x", "", "x", 0)), Record(), 3, (1.0,)
    )
    assert verdict.then == "restart", "a full disk heals by itself"


def test_an_end_that_was_asked_for_is_no_crash():
    assert End(0, True, False, True).meant
    assert End(0, False, True, True).meant
    assert End(-15, True, False, False).meant, "killed while it was loading"
    assert End(-15, True, True, True).meant, "hurried after its last commit"
    assert not End(-15, True, False, True).meant, "hurried before it"
    assert not End(-15, False, True, True).meant
    assert not End(0, False, False, True).meant
    assert not End(-9, True, False, True).meant
    assert after_end.PARKED_IN_A_ROW == 2


def step(loss: float, tokens_per_s: float, index: int = 1) -> StepDone:
    return StepDone(
        index, 1, 0, index, 10, loss, 1e-3, 0.5, 100, 50, tokens_per_s, 5.0, 2.0
    )  # fmt: skip


def test_eta_is_work_over_speed_and_unknown_stays_unknown():
    figures = Figures()
    assert eta.estimate(figures, Work(100), 1).queue_s is None
    for index in range(1, 5):
        figures.step(step(1.0, 50.0, index))
    found = eta.estimate(figures, Work(1500), 1)
    assert found.job_s == (12.0, 12.0)  # six steps of two seconds
    assert found.queue_s == [42.0, 42.0]  # 1500 tokens at 50/s more
    assert eta.estimate(figures, Work(1500), 2).queue_s == [72.0, 72.0]
    assert eta.estimate(figures, Work(1500, unknown=1), 1).queue_s is None


def test_eta_counts_evaluations_and_commits_and_has_a_cautious_figure(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("trainer_tui.safety.clock.monotonic_s", lambda: now_s)
    figures = Figures()
    for index in range(1, 40):
        now_s += 100.0 if index == 20 else 2.5  # a step of 2 s, and half a second for the rest
        if index == 20:
            figures.stand_still()  # a pause is no cost of training
        figures.step(step(1.0, 40.0 if index % 5 == 0 else 50.0, index))
    assert figures.overhead == pytest.approx(37 * 2.5 / (31 * 2 + 6 * 2.5))
    found = eta.estimate(figures, Work(10_000), 1)
    assert found.queue_s[0] == pytest.approx(figures.overhead * 10_000 / 50, abs=0.1)
    assert found.queue_s[1] > found.queue_s[0] * 1.05


def test_nan_is_no_figure():
    figures = Figures()
    found = figures.step(step(float("nan"), 50.0))
    assert figures.loss is None
    assert "loss" not in [point.series for point in found]


async def test_a_reader_that_falls_behind_gets_one_reset():
    bus = Bus(1)
    reader = bus.subscribe(None)
    for number in range(READER_EVENTS + 5):
        bus.publish("step", {"step": number})
    found = await reader.next(0.1)
    assert [sent.kind for sent in found].count("reset") == 1
    bus.publish("step", {"step": 0})
    assert [sent.kind for sent in await reader.next(0.1)] == ["step"]
    assert await asyncio.wait_for(reader.next(0.01), 1) == []


async def test_a_reader_goes_on_after_the_event_it_saw_last():
    bus = Bus(100)
    for number in range(5):
        bus.publish("step", {"step": number})
    assert [sent.id for sent in await bus.subscribe(102).next(0.1)] == [103, 104]
    assert await bus.subscribe(104).next(0.01) == []
    assert [sent.kind for sent in await bus.subscribe(50).next(0.1)] == ["reset"]
    assert [sent.kind for sent in await bus.subscribe(999).next(0.1)] == ["reset"]
