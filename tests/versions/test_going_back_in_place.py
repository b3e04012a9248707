"""The trainer stands aside while a version is restored, and loads it without a new process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints, locks
from trainer_tui.safety.hashing import hash_file
from trainer_tui.safety.messages import (
    Committed,
    FromTrainer,
    HasLetGo,
    JobRefused,
    JobStarted,
    LetGo,
    Pause,
    Paused,
    Ready,
    Reconfigure,
    Resume,
    SaveNow,
    Skip,
    StepDone,
    Stop,
    Stopping,
    TakenUp,
    TakeUp,
    WantJob,
)
from trainer_tui.versions.store import VersionStore

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: bit-equality wants one thread
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import engine_driver
from engine_driver import Driver, Halt, drivers, toy_rows

pytestmark = pytest.mark.end_to_end
LONG = 400  # rows: more steps than any of these tests waits for


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """With dropout, so that a resume has to restore random state."""
    from trainer_tui.engine import toy_model

    model = tmp_path_factory.mktemp("model") / "tiny"
    toy_model.build(model, seed=3, size="tiny")
    return model


@pytest.fixture
def make_driver(tmp_path: Path, tiny: Path) -> Iterator[Callable[..., Driver]]:
    with drivers(tmp_path, tiny) as make:
        yield make


def newest_folder(driver: Driver) -> Path:
    return checkpoints.list_folders(driver.workspace.current_model)[0]


def ask_at(driver: Driver, steps: int, *requests: object) -> None:
    """Start, and send requests when the second file's step so many is told; the next one waits for
    them."""
    step = driver.newest().manifest.global_step + steps

    def ask(message: FromTrainer) -> None:
        if isinstance(message, StepDone) and message.global_step == step:
            for request in requests:
                driver.send(request)  # type: ignore[arg-type]

    driver.on_message = ask
    driver.start(halt=Halt(StepDone, step, len(requests)))


def with_a_version(driver: Driver, rows: list[str]) -> VersionStore:
    """Train a file, keep it as version 1, and put a long other one behind it."""
    driver.add_job(rows)
    driver.run_until_done()
    store = VersionStore(driver.workspace)
    store.create(newest_folder(driver), "after the first file")
    driver.add_job(toy_rows(LONG, 9))
    return store


def standing_aside(driver: Driver) -> tuple[VersionStore, int]:
    """A version, a long file begun, and the trainer has let go of the model; with its step."""
    store = with_a_version(driver, toy_rows(12, 1))
    ask_at(driver, 5, LetGo())
    return store, driver.wait_for(HasLetGo).global_step


def lock_is_free(driver: Driver) -> bool:
    lock = locks.acquire(driver.workspace.writer_lock)
    if lock is not None:
        lock.release()
    return lock is not None


def same_as_a_new_process(make_driver: Callable[[str], Driver], weights_only: bool) -> None:
    """Both learn A and keep it, begin a long file, and go back to A; one of them with the same
    process. What they learn then is the same to the last bit."""
    first, second = toy_rows(12, 1), toy_rows(30, 2)
    hashes = []
    for in_place in (True, False):
        driver = make_driver(f"in_place_{in_place}")
        store = with_a_version(driver, first)
        ask_at(driver, 7, LetGo() if in_place else Stop())
        if in_place:
            let_go = driver.wait_for(HasLetGo)
            assert newest_folder(driver).name == f"checkpoint-{let_go.global_step}"
        else:
            assert driver.wait_end() == 0
        done = store.restore(1, weights_only=weights_only)
        shutil.rmtree(driver.jobs[1].folder)  # the long one
        driver.add_job(second)
        if in_place:
            driver.send(TakeUp())
            taken = driver.wait_for(TakenUp)
            assert taken.loads
            ready = driver.wait_for(Ready, after=driver.seen.index(taken))
            assert (ready.global_step, ready.lineage) == (done.global_step, done.lineage)
        else:
            driver.on_message = lambda message: None
            driver.start()
        driver.wait_all_done()
        assert driver.stop() == 0
        assert driver.ledger_ids() == {1, 3}
        assert driver.newest().manifest.lineage == 1
        hashes.append(driver.tensor_hash())
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("weights_only", [False, True])
def test_what_is_loaded_in_place_trains_on_bit_for_bit_like_a_new_process(
    make_driver, weights_only
):
    same_as_a_new_process(make_driver, weights_only)


@pytest.mark.gpu
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("precision", ["master", "fp32"])
def test_what_is_loaded_in_place_trains_on_like_a_new_process_on_a_gpu_too(
    make_driver, monkeypatch, weights_only, precision
):
    """Through the compiled graph and the kernels, which are not made again for it."""
    monkeypatch.setattr(engine_driver, "DEADLINE_S", 200.0)  # a trainer compiles at its start

    def on_the_card(name: str) -> Driver:
        driver = make_driver(name, deterministic=True, precision=precision)
        driver.method = "spawn"
        config = driver.workspace.models / "base" / "config.json"
        settings = json.loads(config.read_text()) | {"attention_dropout": 0.0}
        config.write_text(json.dumps(settings))  # without dropout the fast backends are used
        return driver

    same_as_a_new_process(on_the_card, weights_only)


def test_nothing_restored_means_that_training_goes_on_at_the_very_next_step(make_driver):
    driver = make_driver()
    _, stood_at = standing_aside(driver)
    assert [m.reason for m in driver.all_of(Committed)] == ["restore"]
    assert newest_folder(driver).name == f"checkpoint-{stood_at}"
    assert lock_is_free(driver)
    steps = [m.global_step for m in driver.steps()]
    driver.send(TakeUp())
    assert not driver.wait_for(TakenUp).loads
    assert not lock_is_free(driver)
    driver.wait_for(StepDone, lambda m: m.global_step > stood_at + 3)
    later = [m.global_step for m in driver.steps()][len(steps) :]
    assert later[:3] == [stood_at + 1, stood_at + 2, stood_at + 3]
    assert len(driver.all_of(JobStarted)) == 1, "the file in hand stayed in hand"
    assert driver.stop() == 0


def test_called_back_before_it_has_let_go_it_never_stood_still(make_driver):
    driver = make_driver()
    with_a_version(driver, toy_rows(12, 1))
    ask_at(driver, 5, LetGo(), TakeUp())
    taken = driver.wait_for(TakenUp)
    assert not taken.loads
    driver.wait_for(StepDone, lambda m: m.global_step > taken.global_step + 3)
    assert not driver.all_of(HasLetGo)
    assert driver.stop() == 0


def test_a_paused_trainer_loads_the_version_and_stays_paused(make_driver):
    driver = make_driver()
    store = with_a_version(driver, toy_rows(12, 1))
    ask_at(driver, 5, Pause())
    driver.wait_for(Paused)
    driver.send(LetGo())
    driver.wait_for(HasLetGo)
    done = store.restore(1)
    seen = len(driver.seen)
    driver.send(TakeUp())
    driver.wait_for(WantJob, after=seen)  # and it is answered with the long file
    driver.send(SaveNow())
    driver.wait_for(Committed, lambda m: m.reason == "unchanged")
    assert all(m.global_step < done.global_step for m in driver.steps()), "nothing trains"
    driver.send(Resume())
    first = driver.wait_for(StepDone, lambda m: m.global_step > done.global_step)
    assert (first.global_step, first.step_index) == (done.global_step + 1, 1)
    assert driver.stop() == 0


def test_what_is_asked_meanwhile_is_done_afterwards_and_commits_nothing_before(make_driver):
    driver = make_driver()
    with_a_version(driver, toy_rows(12, 1))
    driver.offer_jobs = False
    ask_at(driver, 5, LetGo())
    driver.wait_for(WantJob)
    driver.answer()
    driver.wait_for(HasLetGo)
    names = driver.checkpoint_names()
    driver.send(Skip(2))
    driver.send(LetGo())
    driver.wait_for(HasLetGo, after=driver.seen.index(driver.all_of(HasLetGo)[0]) + 1)
    assert driver.checkpoint_names() == names and not driver.all_of(JobRefused)
    driver.send(TakeUp())
    assert driver.wait_for(JobRefused).error_class == "skipped"
    assert driver.seen.index(driver.all_of(JobRefused)[0]) > driver.seen.index(
        driver.all_of(TakenUp)[0]
    )
    assert driver.stop() == 0


@pytest.mark.parametrize("how", ["stop", "hang_up", "kill"])
def test_an_end_while_it_stands_aside_commits_nothing_and_loses_nothing(make_driver, how):
    """Whoever restores meanwhile holds the lock; the next process goes on from what it made."""
    driver = make_driver()
    store, _ = standing_aside(driver)
    names = driver.checkpoint_names()
    if how == "kill":
        driver.kill_all()
    elif how == "hang_up":
        driver.hang_up()
        assert driver.wait_end() == 0
    else:
        assert driver.stop() == 0
    assert driver.checkpoint_names() == names
    done = store.restore(1)
    driver.on_message = lambda message: None
    driver.start()
    ready = driver.wait_for(Ready)
    assert (ready.checkpoint, ready.global_step) == (done.checkpoint, done.global_step)
    driver.wait_for(StepDone)
    assert driver.stop() == 0


@pytest.mark.parametrize("behind", [[], [Stop(after_file=True)]])
def test_it_waits_for_whoever_holds_the_model_and_does_not_believe_the_word(make_driver, behind):
    """`TakeUp` says only that it may: the lock and the disk say when, and from what. A wish to
    stop after the file is none to leave at once."""
    driver = make_driver()
    standing_aside(driver)
    held = locks.acquire(driver.workspace.writer_lock)
    assert held is not None
    for message in (TakeUp(), *behind):
        driver.send(message)
    driver.send(Reconfigure({"lr_factor": 1.0}))
    time.sleep(0.5)  # far longer than it looks again: it would have said so
    assert not driver.all_of(TakenUp) and driver.process.is_alive()
    held.release()
    taken = driver.wait_for(TakenUp)
    assert not taken.loads
    driver.wait_for(StepDone, after=driver.seen.index(taken))
    if behind:
        assert driver.wait_end() == 0 and driver.ledger_ids() == {1, 2}
    else:
        assert driver.stop() == 0


def test_a_restore_that_comes_after_it_was_called_back_gets_the_model_in_the_end(make_driver):
    driver = make_driver()
    store, _ = standing_aside(driver)
    for message in (TakeUp(), LetGo()):
        driver.send(message)
    done = store.restore(1, wait_s=30)  # either of the two has the lock first
    driver.send(TakeUp())
    driver.wait_for(Ready, lambda m: m.checkpoint == done.checkpoint)
    assert driver.stop() == 0


def test_a_job_that_is_offered_twice_is_trained_once(make_driver):
    driver = make_driver()
    with_a_version(driver, toy_rows(12, 1))
    ask_at(driver, 3, driver.jobs[1], Skip(2))
    assert driver.wait_for(JobRefused).error_class == "skipped"
    at = driver.seen.index(driver.all_of(JobRefused)[0])
    driver.wait_for(WantJob, after=at)
    assert driver.stop() == 0
    assert not [m for m in driver.seen[at:] if isinstance(m, JobStarted | StepDone)]


def test_a_checkpoint_of_another_shape_is_left_to_a_new_process(make_driver):
    """It has nothing to commit, says why, and ends as it was asked to: no crash."""
    import torch
    from safetensors.torch import load_file, save_file

    from trainer_tui.safety import manifest

    driver = make_driver()
    _, step = standing_aside(driver)
    left = newest_folder(driver)
    staging, final = left.with_name(".staging-x"), left.with_name(f"checkpoint-{step + 1}")
    shutil.copytree(left, staging)
    weights = load_file(staging / "model.safetensors")
    (staging / "model.safetensors").unlink()
    (staging / manifest.MANIFEST_NAME).unlink()
    save_file({**weights, "one.more": torch.zeros(2)}, staging / "model.safetensors")
    sealed = manifest.read(left)
    files = [checkpoints.entry_for(staging, e.name, e.role) for e in sealed.files]
    import msgspec

    other = msgspec.structs.replace(sealed, files=files, global_step=step + 1, sha256="")
    checkpoints.commit(staging, final, manifest.seal(other))
    driver.send(TakeUp())
    stopping = driver.wait_for(Stopping)
    assert "a new process" in stopping.reason and final.name in stopping.reason
    assert driver.wait_end() == 0
    assert newest_folder(driver) == final


def test_the_base_model_is_left_as_it_was(make_driver):
    """By training from it, by a version, by going back and by what is learnt after that."""

    def files() -> dict[str, tuple[str, int, int, int]]:
        base = driver.workspace.models / "base"
        return {
            str(path.relative_to(base)): (
                hash_file(path), path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode,
            )
            for path in base.rglob("*") if path.is_file()
        }  # fmt: skip

    driver = make_driver()
    before = files()
    store, _ = standing_aside(driver)
    done = store.restore(1)
    driver.send(TakeUp())
    driver.wait_for(StepDone, lambda m: m.global_step > done.global_step)
    assert driver.stop() == 0
    assert len(before) > 2 and files() == before
