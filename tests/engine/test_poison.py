"""A row that makes its step fail is found and left out; every other row trains as often as ever."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.engine.poison import NotTheRows, find_guilty, too_many
from trainer_tui.safety.messages import Failed, Said, StepDone

POISON = 96  # the token of "~", which no toy row has
SPOILT = (17, 43)
CONFIG = {"epochs": 2, "save_steps": 3}


def fails_with(*guilty: int) -> Callable[[Sequence[int]], bool]:
    return lambda documents: bool(set(documents) & set(guilty))


def test_the_guilty_are_found_wherever_they_stand() -> None:
    for count in (1, 2, 7, 32):
        for guilty in range(count):
            assert find_guilty(range(count), fails_with(guilty), [99]) == [guilty]
    assert find_guilty(range(32), fails_with(0, 1, 30), []) == [0, 1, 30]
    assert find_guilty(range(32), lambda documents: False, []) == []  # it did not come again


@pytest.mark.parametrize(
    "fails",
    [
        lambda documents: True,  # whatever is tried: weights or program
        lambda documents: len(documents) > 8,  # only together
        fails_with(0, 3, 9, 12, 20, 25),  # so many that it is no row
    ],
)
def test_nothing_is_blamed_that_no_trial_proves(fails: Callable[[Sequence[int]], bool]) -> None:
    with pytest.raises(NotTheRows):
        find_guilty(range(32), fails, [99])
    with pytest.raises(NotTheRows):
        find_guilty([4], lambda documents: True, [99])
    with pytest.raises(NotTheRows):
        find_guilty([4], lambda documents: True, [])


def test_a_file_of_poison_is_the_files_fault() -> None:
    assert not too_many(8, 50) and too_many(9, 50) and not too_many(20, 2000)


def add_file(driver: Driver, spoilt: Sequence[int] = SPOILT, rows: int = 60) -> None:
    lines = toy_rows(rows, 1)
    for line in spoilt:
        lines[line - 1] = lines[line - 1].replace("It is", "It ~ is")
    driver.add_job(lines)


def set_trap(driver: Driver, **traps: object) -> None:
    (driver.workspace.root / "trap.json").write_text(json.dumps({"trace": True, **traps}))


def rows_seen(driver: Driver) -> Counter[int]:
    """By the last run of every step: a lost step is run again under its number."""
    by_step = {}
    for line in (driver.workspace.root / "trace.jsonl").read_text().splitlines():
        entry = json.loads(line)
        by_step[entry["step"]] = entry["rows"]
    newest = driver.newest()
    assert newest is not None
    return Counter(
        row for step, rows in by_step.items() if step <= newest.manifest.global_step for row in rows
    )


@pytest.mark.parametrize("kind", ["crash", "nan"])
def test_poison_rows_are_left_out_reported_and_every_other_row_trains_exactly_epochs_times(
    make_driver: Callable[..., Driver], kind: str
) -> None:
    driver = make_driver(**CONFIG)
    add_file(driver)
    set_trap(driver, poison_token=POISON, poison_nan=kind == "nan")
    driver.run_until_done(entry="trap")
    others = set(range(1, 61)) - set(SPOILT)
    assert rows_seen(driver) == dict.fromkeys(others, 2)
    (entry,) = driver.ledger()
    assert entry.rows_excluded == list(SPOILT) and entry.rows == 58
    newest = driver.newest()
    assert newest is not None and newest.manifest.tokens == entry.tokens
    told = [m for m in driver.all_of(Said) if m.data.get("kind") == "poison_rows"]
    assert sorted(row for m in told for row in m.data["rows"]) == list(SPOILT)
    kept = [json.loads(p.read_bytes()) for p in driver.workspace.incidents.glob("*/incident.json")]
    assert sorted(row for incident in kept for row in incident["rows"]) == list(SPOILT)
    skipped = [m for m in driver.steps() if m.skipped]
    assert len(skipped) == (len(told) if kind == "nan" else 0)


@pytest.mark.parametrize("kind", ["crash", "nan"])
def test_kills_around_an_exclusion_skip_and_double_nothing_and_the_weights_are_the_same(
    make_driver: Callable[..., Driver], kind: str
) -> None:
    hashes = []
    for name, kills in (("calm", ()), ("killed", (3, 8))):
        driver = make_driver(name, **CONFIG)
        add_file(driver)
        set_trap(driver, poison_token=POISON, poison_nan=kind == "nan")
        for step in kills:
            driver.start(halt=Halt(StepDone, step))
            driver.wait_for(StepDone, lambda m, at=step: m.global_step >= at)  # type: ignore[misc]
            driver.kill_all()
            driver.collect()
        driver.run_until_done(entry="trap")
        assert rows_seen(driver) == dict.fromkeys(set(range(1, 61)) - set(SPOILT), 2)
        assert driver.ledger()[0].rows_excluded == list(SPOILT)
        hashes.append(driver.tensor_hash())
    assert hashes[0] == hashes[1]


def test_a_step_of_nothing_but_poison_is_passed_by(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(batch_size=1, tokens_per_step=0)
    add_file(driver, spoilt=(2,), rows=6)
    set_trap(driver, poison_token=POISON)
    driver.run_until_done(entry="trap")
    assert rows_seen(driver) == dict.fromkeys((1, 3, 4, 5, 6), 1)
    newest = driver.newest()
    assert newest is not None and newest.manifest.global_step == 5
    assert driver.ledger()[0].rows_excluded == [2]


def test_a_file_full_of_poison_is_not_trained_around(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    add_file(driver, spoilt=range(1, 61, 3))
    set_trap(driver, poison_token=POISON)
    driver.start(entry="trap")
    assert driver.wait_for(Failed).error_class == "code_bug"
    assert driver.wait_end() == 1
