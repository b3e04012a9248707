"""The validation set is measured whole where it counts, honestly, and within its share of time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.engine.evaluate import Budget
from trainer_tui.engine.progress import Identity, Progress, from_manifest, to_manifest
from trainer_tui.safety import manifest
from trainer_tui.safety.messages import Committed, Evaluated, JobTrained, Said, SaveNow, StepDone

SET = {"rows": 40, "holdout_rows": 0, "holdout_share": 0.0, "slice_rows": 8}


def fixed_of(driver: Driver) -> list[Evaluated]:
    return [m for m in driver.all_of(Evaluated) if m.series == "fixed"]


def test_a_save_for_a_version_carries_the_loss_of_the_whole_set_at_its_step(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(validation={**SET, "time_share": 1e-9})
    driver.add_job(toy_rows(400, 1))
    driver.start(halt=Halt(StepDone, 3))
    driver.wait_for(StepDone, lambda m: m.global_step >= 3)
    driver.send(SaveNow(evaluate_whole=True))
    saved = driver.wait_for(Committed, lambda m: m.reason == "asked")
    whole = [m for m in fixed_of(driver) if m.global_step == saved.global_step]
    assert len(whole) == 1 and whole[0].whole and whole[0].rows == 40
    sealed = manifest.read(driver.workspace.current_model / saved.folder)
    assert sealed.validation["fixed"] == pytest.approx(whole[0].loss)
    assert sealed.extra["measured"] == [saved.global_step, whole[0].set_id]
    assert driver.stop() == 0


def test_a_save_that_is_asked_for_while_the_very_state_is_being_saved_is_answered(
    make_driver: Callable[..., Driver],
) -> None:
    """Measured at this step and under way to the disk already: nothing more has to be written."""
    driver = make_driver(validation={**SET, "time_share": 1.0}, save_steps=5)
    driver.add_job(toy_rows(400, 1))
    driver.start(halt=Halt(Evaluated, 5))
    measured = driver.wait_for(Evaluated, lambda m: m.global_step >= 5)
    driver.send(SaveNow(evaluate_whole=True))
    answer = driver.wait_for(Committed, lambda m: m.reason in ("asked", "unchanged"))
    due = driver.wait_for(Committed, lambda m: m.global_step == measured.global_step)
    assert (due.reason, answer.reason) == ("save_steps", "unchanged")
    assert (answer.folder, answer.global_step) == (due.folder, due.global_step)
    assert driver.stop() == 0


def test_a_version_of_a_state_that_is_saved_already_is_measured_too(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(validation={**SET, "time_share": 1e-9})
    driver.add_job(toy_rows(400, 1))
    driver.start()
    driver.wait_for(JobTrained)
    dry = driver.wait_for(Committed, lambda m: m.reason in ("queue_dry", "file_done"))
    before = driver.newest()
    assert before is not None and before.manifest.extra["measured"][0] == 0
    driver.send(SaveNow(evaluate_whole=True))
    asked = driver.wait_for(Committed, lambda m: m.reason == "asked")
    assert asked.global_step == dry.global_step and asked.folder != dry.folder
    newest = driver.newest()
    assert newest is not None and newest.folder.name == asked.folder
    assert newest.manifest.extra["measured"][0] == asked.global_step
    assert newest.manifest.validation["fixed"] < before.manifest.validation["fixed"]
    driver.send(SaveNow(evaluate_whole=True))  # measured at this step: nothing to write again
    again = driver.wait_for(Committed, lambda m: m.reason == "unchanged")
    assert again.folder == asked.folder
    assert driver.stop() == 0


def test_the_end_of_a_file_is_measured_whole_when_the_file_has_paid_for_it(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(eval_steps=2, validation={**SET, "time_share": 0.3})
    driver.add_job(toy_rows(400, 1))
    driver.run_until_done()
    looks = fixed_of(driver)
    (entry,) = driver.ledger()
    assert looks[-1].whole and looks[-1].global_step == entry.global_step
    assert entry.val_after == pytest.approx(looks[-1].loss)
    assert any(not m.whole for m in looks)  # slices did not eat what the whole look needs


def test_slices_are_told_and_never_noted_as_the_loss_of_the_set(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(eval_steps=2, save_steps=5, validation={**SET, "time_share": 0.02})
    driver.add_job(toy_rows(400, 1))
    driver.run_until_done()
    whole = {(m.global_step, m.loss) for m in fixed_of(driver) if m.whole}
    for name in driver.checkpoint_names():
        sealed = manifest.read(driver.workspace.current_model / name)
        step, set_id = sealed.extra["measured"]
        assert (step, sealed.validation["fixed"]) in whole
        assert set_id == fixed_of(driver)[0].set_id


def test_a_set_that_grew_is_said_and_measured_before_anything_is_compared_with_it(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(validation={**SET, "rows": 60, "time_share": 1e-9})
    for seed in range(3):
        driver.add_job(toy_rows(300, seed))  # 30 rows each: the third file finds it frozen
    driver.run_until_done()
    looks = fixed_of(driver)
    assert [m.rows for m in looks] == [30, 60] and all(m.whole for m in looks)
    ends = {entry.job_id: entry.global_step for entry in driver.ledger()}
    assert [m.global_step for m in looks] == [0, ends[1]]
    told = [m for m in driver.all_of(Said) if m.topic == "validation"]
    assert [m.data["set_id"] for m in told] == [m.set_id for m in looks]
    assert "of another set" in told[1].text and "of another set" not in told[0].text
    by_job = {entry.job_id: entry for entry in driver.ledger()}
    # No figure was had of the sets in use at the ends, nor when the third began (the second had
    # changed what the figure was of): nothing is made up for them.
    assert [by_job[job].val_after for job in (1, 2, 3)] == [None, None, None]
    assert [by_job[job].val_before for job in (1, 2)] == pytest.approx(
        [looks[0].loss, looks[1].loss]
    )
    assert by_job[3].val_before is None


def test_evaluation_takes_its_share_of_the_time_and_no_more(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(eval_steps=2, save_steps=20, validation={**SET, "time_share": 0.05})
    for seed in range(3):
        driver.add_job(toy_rows(500, seed))
    driver.run_until_done()
    looks = driver.all_of(Evaluated)
    first = looks[0].seconds  # the first look is free: without it there is nothing to compare
    trained_s = sum(m.step_s for m in driver.steps())
    spent_s = sum(m.seconds for m in looks) - first
    longest_s = max(m.seconds for m in looks)  # its price is known only when it is over
    assert len(looks) >= 3  # how many more a machine affords is its own affair
    assert spent_s <= 0.05 * trained_s + longest_s, (spent_s, trained_s, len(looks))


def test_half_of_the_budget_is_kept_until_the_whole_set_is_paid_for() -> None:
    budget = Budget(0.1, seconds_per_token=0.01, whole_tokens=100)  # a whole look costs 1 s
    budget.earn(10.0)
    assert (budget.seconds_left, budget.kept_for_whole_s) == (0.5, 0.5)
    assert budget.affords_whole()
    budget.spend(0.5, 50)
    assert not budget.affords_whole() and not budget.affords(1)
    budget.earn(30.0)  # 3 s, of which the kept half is full at 1 s
    assert budget.kept_for_whole_s == 1.0 and budget.seconds_left == 2.5
    budget.spend(1.25, 100, whole=True)
    assert (budget.kept_for_whole_s, budget.seconds_left) == (0.0, 2.25)


def test_a_hiccup_in_one_slice_does_not_forbid_the_look_at_the_whole_set() -> None:
    budget = Budget(0.1, seconds_left=1.5, whole_tokens=100)
    for _ in range(3):
        budget.spend(0.1, 10)
    assert budget.affords_whole()  # 1 s of the 1.2 that are left
    budget.spend(0.15, 10)  # half as slow again, once
    assert budget.seconds_per_token == 0.01 and budget.affords_whole()


def test_a_nan_before_a_file_does_not_make_the_checkpoint_unreadable() -> None:
    progress = Progress(val_before={1: math.nan, 2: 1.5}, validation={"fixed": math.nan})
    sealed = manifest.seal(to_manifest(progress, Identity("", "", "", ""), "asked"))
    import msgspec

    read = msgspec.json.decode(sealed, type=manifest.Manifest)
    assert from_manifest(read, "checkpoint-0").val_before == {2: 1.5}
    old = msgspec.structs.replace(read, extra={**read.extra, "val_before": {"1": None, "2": 1.5}})
    assert from_manifest(old, "checkpoint-0").val_before == {2: 1.5}  # as an older release wrote it


def test_a_checkpoint_holds_the_settings_it_was_trained_with_and_no_secret(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(learning_rate=1e-3, api={"token": "hush"}, notify={"webhook": "hush"})
    driver.add_job(toy_rows(5, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    settings = newest.manifest.extra["config"]
    assert settings["learning_rate"] == 1e-3 and settings["validation"]["rows"] == 0
    assert "hush" not in json.dumps(settings)
