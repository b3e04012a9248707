"""A row that ends the trainer's process is found by the third one and left out; no other row is."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_harness import wait_for
from engine_driver import Driver
from test_poison import CONFIG, POISON, SPOILT, add_file, rows_seen, set_trap

from trainer_tui.engine import deaths, step_mark
from trainer_tui.engine.step_mark import Place, StepMark
from trainer_tui.safety import clock
from trainer_tui.safety.messages import Committed, Said
from trainer_tui.safety.workspace import Workspace

Make = Callable[..., Driver]
OTHERS = dict.fromkeys(set(range(1, 61)) - set(SPOILT), 2)


def run_until_it_ends(driver: Driver) -> bool:
    """One trainer's life; whether it got through all files (else a row ended it)."""
    driver.start(entry="trap")
    driver.wait_for_end_or_done()
    if driver.in_processing():
        assert driver.process.exitcode is not None and driver.process.exitcode < 0
        return False
    driver.stop()
    return True


def test_rows_that_end_the_process_are_left_out_within_three_attempts_each(
    make_driver: Make,
) -> None:
    """Two such rows in different steps; what the daemon counts is ends without a commit. The
    weights are those of a run in which the rows only raise, and are left out by their own trainer.
    """
    calm = make_driver("calm", **CONFIG)
    add_file(calm)
    set_trap(calm, poison_token=POISON)
    calm.run_until_done(entry="trap")

    driver = make_driver(**CONFIG)
    add_file(driver)
    set_trap(driver, kill_token=POISON, kill_by=int(signal.SIGSEGV), quick_hunt=True)
    lives, without_progress, told = 0, [0], []
    while True:
        lives += 1
        done = run_until_it_ends(driver)
        told += [m for m in driver.all_of(Said) if m.data.get("kind") == "poison_rows"]
        without_progress.append(0 if driver.all_of(Committed) else without_progress[-1] + 1)
        if done:
            break
        assert lives < 8
    assert max(without_progress) < 3, "the daemon would have set the file aside"
    assert rows_seen(driver) == OTHERS
    (entry,) = driver.ledger()
    assert entry.rows_excluded == list(SPOILT) and entry.rows == 58
    newest = driver.newest()
    assert newest is not None and newest.manifest.tokens == entry.tokens
    assert driver.tensor_hash() == calm.tensor_hash()
    assert sorted(row for m in told for row in m.data["rows"]) == list(SPOILT)
    kept = [json.loads(p.read_bytes()) for p in driver.workspace.incidents.glob("*/incident.json")]
    assert sorted(row for incident in kept for row in incident["rows"]) == list(SPOILT)


def test_a_row_that_makes_it_hang_for_ever_is_found_by_processes_of_their_own(
    make_driver: Make,
) -> None:
    """Trials as they are meant to be: each in a process of its own, and with a time limit."""
    driver = make_driver(epochs=1, batch_size=4, tokens_per_step=0)
    add_file(driver, spoilt=(17,))
    set_trap(driver, kill_token=POISON, kill_by=0, trial_limit_s=3)
    for _ in range(2):
        hangs = driver.workspace.root / "hangs"
        hangs.unlink(missing_ok=True)
        driver.start(entry="trap")
        wait_for(hangs.exists, 60)
        driver.kill_all()
    assert run_until_it_ends(driver)
    assert rows_seen(driver) == Counter(set(range(1, 61)) - {17})
    assert driver.ledger()[0].rows_excluded == [17]


def test_ends_that_no_row_explains_exclude_nothing(make_driver: Make) -> None:
    driver = make_driver(**CONFIG)
    add_file(driver, spoilt=())
    set_trap(
        driver, kill_token=POISON, kill_always=True, kill_by=int(signal.SIGKILL), quick_hunt=True
    )
    for _ in range(3):
        assert not run_until_it_ends(driver)
    said = [m.text for m in driver.all_of(Said)]
    assert any("no row is to blame" in text for text in said), said
    assert deaths.read(Path(driver.jobs[0].folder)).rows == []
    set_trap(driver)  # whatever it was is gone: the file trains whole
    assert run_until_it_ends(driver)
    assert rows_seen(driver) == dict.fromkeys(range(1, 61), 2)
    assert driver.ledger()[0].rows_excluded == []


def place(workspace: Workspace) -> Place:
    return Place(1, "a.jsonl", str(workspace.root), "0" * 64, "plan", 0, 7)


def test_only_a_process_that_ends_inside_a_step_leaves_a_mark(make_driver: Make) -> None:
    workspace = make_driver().workspace
    mark, here = StepMark(workspace), place(workspace)
    assert step_mark.take(workspace) is None
    with mark.running(here):
        pass
    assert step_mark.take(workspace) is None
    with pytest.raises(ValueError, match="in a step"), mark.running(here):
        raise ValueError("in a step")
    assert step_mark.take(workspace) is None, "an error is found by its own trainer"
    step_mark.blame_last(workspace)  # a GPU told later that the step broke it
    found = step_mark.take(workspace)
    assert found is not None and found.step_index == 7 and found.train.name == "a.jsonl"
    assert step_mark.take(workspace) is None, "it is counted once"


def test_a_mark_of_before_a_reboot_blames_nobody(
    make_driver: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = make_driver().workspace
    with StepMark(workspace).running(place(workspace)):
        other = tmp_path / "boot"
        other.write_text("another boot")
        monkeypatch.setattr(clock, "BOOT_ID", other)
        assert step_mark.take(workspace) is None
