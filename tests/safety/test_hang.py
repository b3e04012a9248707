"""A hung trainer is found, a slow, suspended or paused one is left alone."""

from __future__ import annotations

from trainer_tui.safety.hang import (
    WRITER_LIMIT_S,
    Hung,
    Judge,
    Moving,
    Stopped,
    WriterHung,
    WriterJudge,
)
from trainer_tui.safety.heartbeat import Beat, Phase


def beat(number: int, phase: Phase = Phase.MICRO_STEP) -> Beat:
    return Beat(number, phase, 1, number, 0, 0)


def run_steps(judge: Judge, steps: int, step_s: float, start_s: float = 0.0) -> float:
    now = start_s
    for number in range(steps):
        for _ in range(max(1, round(step_s))):
            now += step_s / max(1, round(step_s))
            assert isinstance(judge.look(beat(number), "S", now), Moving)
    return now


def silence(
    judge: Judge, last: Beat | None, seconds: int, start_s: float, state: str = "S"
) -> list[object]:
    return [judge.look(last, state, start_s + second) for second in range(1, seconds + 1)]


def test_silence_over_the_floor_is_a_hang_and_not_before() -> None:
    judge = Judge()
    now = run_steps(judge, 20, 1.0)
    verdicts = silence(judge, beat(19), 70, now)
    first = next(index for index, verdict in enumerate(verdicts, 1) if isinstance(verdict, Hung))
    assert 60 <= first <= 62
    assert isinstance(verdicts[-1], Hung) and verdicts[-1].phase is Phase.MICRO_STEP


def test_a_step_ten_times_slower_than_usual_is_never_a_hang() -> None:
    judge = Judge()
    now = run_steps(judge, 50, 20.0)
    assert all(isinstance(found, Moving) for found in silence(judge, beat(49), 200, now))
    assert any(isinstance(found, Hung) for found in silence(judge, beat(49), 60, now + 200))


def test_patience_ends_at_fifteen_minutes() -> None:
    judge = Judge()
    now = run_steps(judge, 10, 50.0)
    run_steps(judge, 10, 400.0, now)
    assert judge.limit_s(Phase.MICRO_STEP) == 900.0


def test_a_suspended_machine_is_no_hang() -> None:
    judge = Judge()
    now = run_steps(judge, 5, 1.0)
    assert isinstance(judge.look(beat(4), "S", now + 36_000), Moving)
    assert isinstance(judge.look(beat(4), "S", now + 36_001), Moving)


def test_idle_and_paused_are_never_hung() -> None:
    for phase in (Phase.IDLE, Phase.PAUSED):
        judge = Judge()
        judge.look(beat(1, phase), "S", 0.0)
        assert all(isinstance(found, Moving) for found in silence(judge, beat(1, phase), 2000, 0.0))


def test_a_stopped_process_is_continued_within_ten_seconds_then_given_up() -> None:
    judge = Judge()
    now = run_steps(judge, 5, 1.0)
    verdicts = silence(judge, beat(4), 30, now, state="T")
    kinds = [type(found) for found in verdicts]
    assert kinds.index(Stopped) < 10
    assert kinds.count(Stopped) == 2
    assert isinstance(verdicts[-1], Hung)


def test_progress_after_a_stop_forgives_it() -> None:
    judge = Judge()
    run_steps(judge, 5, 1.0)
    silence(judge, beat(4), 8, 5.0, state="T")
    assert isinstance(judge.look(beat(5), "S", 14.0), Moving)
    verdicts = silence(judge, beat(5), 8, 14.0, state="T")
    assert any(isinstance(found, Stopped) and found.continued == 1 for found in verdicts)


def test_a_trainer_that_never_beats_is_found() -> None:
    judge = Judge()
    assert any(isinstance(found, Hung) for found in silence(judge, None, 70, 0.0))


def test_bytes_written_count_as_progress_while_saving() -> None:
    judge = Judge()
    for second in range(1000):
        moving = Beat(second, Phase.PERSIST, 1, 7, 0, second * 100)
        assert isinstance(judge.look(moving, "D", float(second)), Moving)


def test_a_writer_in_which_nothing_moves_is_found_whatever_training_does() -> None:
    for training in (True, False):  # it trains on, or it waits in the phase persist
        judge = WriterJudge()
        found = []
        for second in range(int(WRITER_LIMIT_S) + 15):
            step = second if training else None
            found.append(judge.look(77, (min(second, 9), 0), step, float(second)))
        assert not any(found[: int(WRITER_LIMIT_S) + 9])
        assert isinstance(found[-1], WriterHung) and found[-1].pid == 77


def test_bytes_told_or_counted_another_writer_or_none_are_no_hang() -> None:
    limit = int(WRITER_LIMIT_S) * 3
    for pid, told, counted in (
        (lambda s: 77, lambda s: 1, lambda s: s),
        (lambda s: 77, lambda s: s, lambda s: 1),
        (lambda s: 0, lambda s: 1, lambda s: 1),
        (lambda s: 1 + s // 100, lambda s: 1, lambda s: 1),
    ):
        judge = WriterJudge()
        found = [judge.look(pid(s), (told(s), counted(s)), s, float(s)) for s in range(limit)]
        assert not any(found)


def test_in_the_middle_of_a_long_step_a_writer_that_is_through_is_not_taken_for_hung() -> None:
    judge = WriterJudge()
    limit = int(WRITER_LIMIT_S)
    assert not any(judge.look(77, (9, 9), 5, float(s)) for s in range(3 * limit))
    assert judge.look(77, (9, 9), 6, 3.0 * limit) is None, "it asked before its step"
    assert judge.look(77, (9, 9), 7, 3.0 * limit + 1) is not None


def test_a_suspended_machine_is_no_hung_writer() -> None:
    judge = WriterJudge()
    assert judge.look(77, (1, 1), None, 0.0) is None
    assert judge.look(77, (1, 1), None, 36_000.0) is None
    assert judge.look(77, (1, 1), None, 36_001.0) is None
