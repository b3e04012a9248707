"""Positions: between any two there is room, and a renumbering never overtakes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_tui.queue import line
from trainer_tui.queue.order import (
    HIGHEST,
    LOWEST,
    NoRoom,
    Waiting,
    parse_position,
    position_between,
    position_text,
    renumbering,
)

positions = st.integers(LOWEST, HIGHEST)


@given(st.lists(positions, min_size=2, max_size=20, unique=True))
def test_names_sort_as_positions_do(found: list[int]) -> None:
    by_text = sorted(found, key=position_text)
    assert by_text == sorted(found)
    assert [parse_position(position_text(position)) for position in found] == found


@given(st.one_of(st.none(), positions), st.one_of(st.none(), positions))
def test_position_between_is_between_or_says_that_there_is_no_room(
    low: int | None, high: int | None
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    before = None if low is None else Waiting(low, 1)
    after = None if high is None else Waiting(high, 2)
    try:
        found = position_between(before, after)
    except NoRoom:
        return
    assert low is None or low < found
    assert high is None or found < high


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=60, unique=True),
    st.integers(0, 60),
)
def test_renumbering_keeps_the_order_at_every_moment_and_makes_room(
    found: list[int], at: int
) -> None:
    order = [Waiting(position, index + 1) for index, position in enumerate(sorted(found))]
    at = min(at, len(order))
    wanted = [waiting.job_id for waiting in order]
    now = {waiting.job_id: waiting.position for waiting in order}
    for move in renumbering(order, at):
        now[move.job_id] = move.position
        assert len(set(now.values())) == len(now)
        assert sorted(now, key=now.__getitem__) == wanted
    before = Waiting(now[wanted[at - 1]], wanted[at - 1]) if at else None
    after = Waiting(now[wanted[at]], wanted[at]) if at < len(wanted) else None
    position_between(before, after)


@pytest.mark.parametrize("text", ["", "1", "x" * 20, "9" * 20, "-0000000000000000001", "٠" * 20])
def test_other_texts_are_no_positions(text: str) -> None:
    assert parse_position(text) is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5), st.booleans()), max_size=200))
def test_the_work_ahead_of_a_place_is_the_sum_of_what_stands_there(steps) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line, "BLOCK", 4)  # so that blocks are split and emptied
        check_line(steps)


def check_line(steps: list[tuple[int, int, bool]]) -> None:
    found, model = line.Line(), {}
    for position, tokens, stays in steps:
        one = Waiting(position, position)
        found.remove(one)
        model.pop(one, None)
        if stays:
            found.add(one, tokens)
            model[one] = tokens
        assert list(found) == sorted(model) and len(found) == len(model)
        ahead = [count for other, count in model.items() if other < one]
        assert found.place_of(one) == len(ahead)
        assert found.work_before(one) == line.Work(sum(ahead), ahead.count(0))
        counts = list(model.values())
        assert found.work() == line.Work(sum(counts), counts.count(0))
    assert [found[at] for at in range(len(found))] == sorted(model)
    again = line.Line(model.items())
    assert list(again) == sorted(model) and again.work() == found.work()
