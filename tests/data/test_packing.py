"""The plan: pure, complete, full, quick, and the same for ever."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_tui.data.packing import (
    PlanOptions,
    best_fit_decreasing,
    fill,
    plan_epoch,
    plan_key,
    shuffled,
)

SHA = "ab" * 32
lengths_lists = st.lists(st.integers(1, 300), max_size=80)


def chat_lengths(rows: int) -> np.ndarray:
    """Lengths as chats have them: lognormal, about 510 tokens on average."""
    drawn = np.exp(np.random.default_rng(0).normal(6.0, 0.7, rows))
    return np.clip(drawn, 32, 4096).astype(np.int32)


def flat(plan) -> list[int]:
    return [index for step in plan for pack in step for index in pack]


@given(lengths_lists, st.integers(0, 3), st.sampled_from((64, 300, 1000)), st.data())
def test_every_document_exactly_once_and_no_pack_overfull(lengths, epoch, per_step, data) -> None:
    chosen = (
        data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True)) if lengths else []
    )
    options = PlanOptions(pack_tokens=300, tokens_per_step=per_step)
    plan = plan_epoch(np.array(lengths, np.int32), np.array(chosen, int), SHA, epoch, options)
    assert sorted(flat(plan)) == sorted(chosen)
    capacity = min(300, max(per_step, max((lengths[at] for at in chosen), default=0)))
    for step in plan:
        assert step and all(pack for pack in step)
        assert all(sum(lengths[at] for at in pack) <= capacity for pack in step)
        assert len(step) * capacity <= max(per_step, capacity)


@given(lengths_lists, st.integers(1, 5), st.integers(1, 3))
def test_steps_counted_in_rows_hold_that_many(lengths, batch, accumulation) -> None:
    options = PlanOptions(300, 1000, batch_size=batch, gradient_accumulation=accumulation)
    plan = plan_epoch(np.array(lengths, np.int32), np.arange(len(lengths)), SHA, 0, options)
    sizes = [sum(len(pack) for pack in step) for step in plan]
    assert sum(sizes) == len(lengths)
    assert all(size == batch * accumulation for size in sizes[:-1])


def test_ten_thousand_rows_fill_99_percent_in_well_under_a_second() -> None:
    lengths = chat_lengths(10_000)
    start = time.process_time()
    plan = plan_epoch(lengths, np.arange(10_000), SHA, 0, PlanOptions())
    assert time.process_time() - start < 0.3
    assert fill(plan, lengths, 8192) >= 0.99


def test_the_plan_is_a_pure_function_and_epochs_differ_in_order_not_in_length() -> None:
    lengths, every = chat_lengths(500), np.arange(500)
    options = PlanOptions()
    first = plan_epoch(lengths, every, SHA, 0, options)
    assert plan_epoch(lengths.astype(np.int64), every, SHA, 0, options) == first
    for other in (
        plan_epoch(lengths, every, SHA, 1, options),
        plan_epoch(lengths, every, "cd" * 32, 0, options),
        plan_epoch(lengths, every, SHA, 0, PlanOptions(seed=18)),
    ):
        assert flat(other) != flat(first) and len(other) == len(first)


def test_the_order_is_the_same_for_ever() -> None:
    """Written down, so that no update of a library can change a plan under a cursor."""
    assert shuffled(10, 17).tolist() == SHUFFLED_17
    lengths = np.array([5, 9, 3, 7, 7, 2, 8, 4, 6, 1])
    options = PlanOptions(pack_tokens=10, tokens_per_step=20, seed=17)
    assert plan_epoch(lengths, np.arange(10), SHA, 0, options) == PLAN_17


SHUFFLED_17 = [4, 8, 6, 5, 3, 2, 1, 0, 7, 9]
PLAN_17 = [[[0], [1, 9]], [[4, 2], [6, 5]], [[8, 7], [3]]]


@given(lengths_lists)
def test_best_fit_is_never_far_from_the_fewest_bins(lengths) -> None:
    bins = best_fit_decreasing(np.array(lengths, np.int32), 300)
    assert sorted(at for one in bins for at in one) == list(range(len(lengths)))
    fewest = -(-sum(lengths) // 300)
    assert len(bins) <= 11 / 9 * max(fewest, sum(length > 150 for length in lengths)) + 2


def test_a_document_longer_than_a_pack_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer than"):
        plan_epoch(np.array([10]), np.array([0]), SHA, 0, PlanOptions(pack_tokens=9))


def test_another_input_gives_another_plan_key() -> None:
    options = PlanOptions()
    base = plan_key(SHA, "t", "v", [3, 1], options)
    assert base == plan_key(SHA, "t", "v", [1, 3], options)
    others = [
        plan_key("cd", "t", "v", [3, 1], options),
        plan_key(SHA, "u", "v", [3, 1], options),
        plan_key(SHA, "t", "w", [3, 1], options),
        plan_key(SHA, "t", "v", [3], options),
        plan_key(SHA, "t", "v", [3, 1], PlanOptions(seed=1)),
        plan_key(SHA, "t", "v", [3, 1], PlanOptions(pack_tokens=4096)),
    ]
    assert len({base, *others}) == 7
