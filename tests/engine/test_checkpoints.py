"""Checkpoints: few, whole, loadable by others, never with a NaN, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.messages import (
    Committed,
    Failed,
    JobTrained,
    Ready,
    Said,
    SaveNow,
    StepDone,
)


def trap(driver: Driver, **traps: object) -> None:
    (driver.workspace.root / "trap.json").write_text(json.dumps(traps))


def writable(path: Path) -> Path:
    path.chmod(0o600)
    return path


def flip_one_bit(path: Path) -> None:
    with writable(path).open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def two_checkpoints(driver: Driver) -> list[str]:
    """Names, newest first."""
    driver.config = driver.config.model_copy(update={"save_steps": 4})
    driver.add_job(toy_rows(24, 1))
    driver.run_until_done()
    names = driver.checkpoint_names()
    assert len(names) >= 2
    return names


def test_twenty_tiny_files_are_a_few_checkpoints(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(min_save_interval_s=300.0)
    for number in range(20):
        driver.add_job(toy_rows(3, number))
    driver.run_until_done()
    assert driver.ledger_ids() == set(range(1, 21))
    assert [m.reason for m in driver.all_of(Committed)] == ["queue_dry"]
    assert len(driver.checkpoint_names()) == 1
    assert len(list(driver.workspace.ledger.iterdir())) == 1


def test_a_checkpoint_loads_with_from_pretrained_and_gives_the_same_logits(
    make_driver: Callable[..., Driver],
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    driver = make_driver()
    driver.add_job(toy_rows(30, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    weights = load_file(newest.folder / "model.safetensors")
    assert "lm_head.weight" not in weights  # tied: stored once
    model = AutoModelForCausalLM.from_pretrained(newest.folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor)
    base = AutoModelForCausalLM.from_pretrained(driver.workspace.models / "base")
    assert not torch.equal(base.model.embed_tokens.weight, model.model.embed_tokens.weight)
    tokenizer = AutoTokenizer.from_pretrained(newest.folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], return_tensors="pt", return_dict=False
    )
    assert torch.isfinite(model(ids).logits).all()


def test_committed_files_are_read_only_and_hashed_with_their_roles(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    roles = {entry.name: entry.role for entry in newest.manifest.files}
    assert roles["model.safetensors"] == "weights"
    assert roles["optimizer.safetensors"] == "optimizer"
    assert roles["trainer_state.json"] == "state"
    assert roles["config.json"] == roles["tokenizer.json"] == "model"
    assert {p.name for p in newest.folder.iterdir()} == {*roles, manifest.MANIFEST_NAME}
    assert all(p.stat().st_mode & 0o777 == 0o400 for p in newest.folder.iterdir())


@pytest.mark.parametrize("damage", ["bit", "short", "no_optimizer", "empty_manifest"])
def test_a_damaged_checkpoint_is_marked_and_the_one_before_it_is_used(
    make_driver: Callable[..., Driver], damage: str
) -> None:
    driver = make_driver()
    names = two_checkpoints(driver)
    folder = driver.workspace.current_model / names[0]
    match damage:
        case "bit":
            flip_one_bit(folder / "model.safetensors")
        case "short":
            os.truncate(writable(folder / "model.safetensors"), 1000)
        case "no_optimizer":
            (folder / "optimizer.safetensors").unlink()
        case "empty_manifest":
            writable(folder / manifest.MANIFEST_NAME).write_bytes(b"")
    driver.start()
    ready = driver.wait_for(Ready)
    assert ready.checkpoint == names[1]
    assert any(names[0] in note for note in ready.notes)
    assert driver.stop() == 0
    assert names[0] not in driver.checkpoint_names()
    assert (driver.workspace.current_model / (names[0] + checkpoints.BAD_SUFFIX)).is_dir()


def test_when_no_checkpoint_verifies_it_refuses_instead_of_starting_at_step_0(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    for name in two_checkpoints(driver):
        (driver.workspace.current_model / name / "optimizer.safetensors").unlink()
    driver.start()
    failed = driver.wait_for(Failed)
    assert failed.error_class == "checkpoint_corrupt"
    assert "optimizer.safetensors is missing" in failed.message
    assert driver.wait_end() == 1
    report = json.loads((driver.workspace.incidents / "run2" / "error.json").read_bytes())
    assert report["error_class"] == "checkpoint_corrupt"
    assert len(driver.checkpoint_names()) >= 2  # nothing was hidden: a person has to look


def reseal(folder: Path, **changes: object) -> None:
    """Commit other facts about a checkpoint, as `versions` does when it thins one."""
    import msgspec

    old = manifest.read(folder)
    new = msgspec.structs.replace(old, **changes)
    writable(folder / manifest.MANIFEST_NAME).write_bytes(manifest.seal(new))


def test_a_checkpoint_without_optimizer_that_does_not_say_so_is_refused(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    kept = [entry for entry in newest.manifest.files if entry.role != "optimizer"]
    reseal(newest.folder, files=kept)
    driver.start()
    assert "has no optimizer" in driver.wait_for(Failed).message
    assert driver.wait_end() == 1


def test_another_precision_is_refused_with_what_to_set(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    path = writable(newest.folder / "trainer_state.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "master"}))
    files = [entry for entry in newest.manifest.files if entry.role != "state"]
    reseal(newest.folder, files=[*files, checkpoints.entry_for(newest.folder, path.name, "state")])
    driver.start()
    failed = driver.wait_for(Failed)
    assert failed.error_class == "config" and 'set precision = "master"' in failed.hint
    assert driver.wait_end() == 1


def test_weights_only_says_so_and_warms_up_again(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(warmup_steps=4)
    driver.add_job(toy_rows(40, 1))
    driver.run_until_done()
    newest = driver.newest()
    assert newest is not None
    kept = [entry for entry in newest.manifest.files if entry.role != "optimizer"]
    reseal(newest.folder, files=kept, weights_only=True)
    driver.add_job(toy_rows(40, 2))
    driver.start()
    assert any("weights only" in note for note in driver.wait_for(Ready).notes)
    driver.wait_all_done()
    driver.stop()
    rates = [m.learning_rate for m in driver.steps()][:6]
    assert rates == pytest.approx([3e-3 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])


def test_a_nan_is_never_committed_and_stops_training_with_a_reason(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(save_steps=1, ladder={"nan_steps_before_stop": 3})
    driver.add_job(toy_rows(60, 1))
    trap(driver, nan_steps=list(range(6, 100)))
    driver.start(entry="trap")
    failed = driver.wait_for(Failed)
    assert failed.error_class == "nan" and failed.job_id == 1
    assert driver.wait_end() == 1
    skipped = [m.global_step for m in driver.steps() if m.skipped]
    assert skipped == [6, 7, 8]
    newest = driver.newest()
    assert newest is not None
    assert newest.manifest.global_step == 5  # the boundary before the first of them
    assert newest.manifest.cursors[0].step_index == 5
    for name in driver.checkpoint_names():
        assert_finite(driver.workspace.current_model / name)


def assert_finite(folder: Path) -> None:
    from safetensors.torch import load_file

    for name in ("model.safetensors", "optimizer.safetensors"):
        for tensor in load_file(folder / name).values():
            assert torch.isfinite(tensor.float()).all()


def test_a_single_nan_step_is_skipped_counted_and_training_goes_on(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(40, 1))
    trap(driver, nan_steps=[4])
    driver.run_until_done(entry="trap")
    assert [m.global_step for m in driver.steps() if m.skipped] == [4]
    newest = driver.newest()
    assert newest is not None
    assert newest.manifest.extra["skipped_steps"] == 1
    assert any(m.topic == "incident" and m.data["kind"] == "nan" for m in driver.all_of(Said))
    assert_finite(newest.folder)


def test_out_of_memory_halves_the_micro_batch_and_the_update_stays_the_same(
    make_driver: Callable[..., Driver],
) -> None:
    from safetensors.torch import load_file

    hashes = []
    for name, traps in (("roomy", {}), ("tight", {"oom_tokens": 150})):
        driver = make_driver(name)
        driver.add_job(toy_rows(30, 1))
        trap(driver, **traps)
        driver.run_until_done(entry="trap")
        newest = driver.newest()
        assert newest is not None
        hashes.append((load_file(newest.folder / "model.safetensors"), driver))
    assert any(m.topic == "memory" for m in hashes[1][1].all_of(Said))
    steps = [[m.loss for m in d.steps()] for _, d in hashes]
    # Dropout draws differ with the shapes, so losses agree closely, not to the bit.
    assert steps[1] == pytest.approx(steps[0], rel=0.02)
    assert len(steps[0]) == len(steps[1])


def test_a_failed_fsync_abandons_the_staging_folder_and_is_tried_anew(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    trap(driver, fail_writer={"operation": "fsync", "errno": errno.EIO, "times": 1})
    driver.run_until_done(entry="trap")
    assert any("not written" in m.text for m in driver.all_of(Said))
    assert driver.newest() is not None
    assert not [p for p in driver.workspace.current_model.iterdir() if p.name.startswith(".stag")]


def test_a_disk_that_never_takes_the_checkpoint_is_an_io_error_and_no_false_success(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    trap(driver, fail_writer={"operation": "fsync", "errno": errno.EIO, "times": 99})
    driver.start(entry="trap")
    failed = driver.wait_for(Failed)
    assert failed.error_class == "io_error"
    assert driver.wait_end() == 1
    assert driver.all_of(Committed) == []
    assert driver.checkpoint_names() == []


def test_a_full_disk_is_waited_for(
    make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(10, 1))
    trap(driver, fail_writer={"operation": "rename", "errno": errno.ENOSPC, "times": 1})
    driver.start(entry="trap")
    driver.wait_for(JobTrained)
    driver.wait_for(Committed)
    driver.wait_all_done()
    assert driver.stop() == 0


def test_a_killed_writer_is_replaced_and_nothing_is_lost(
    make_driver: Callable[..., Driver],
) -> None:
    import psutil

    driver = make_driver()
    driver.add_job(toy_rows(400, 1))
    driver.start(halt=Halt(StepDone))
    driver.wait_for(StepDone)
    for writer in psutil.Process(driver.process.pid).children():
        writer.kill()
    driver.send(SaveNow())
    committed = driver.wait_for(Committed)
    newest = driver.newest()
    assert newest is not None and newest.folder.name == committed.folder
    assert driver.stop() == 0


def test_a_file_whose_last_update_is_skipped_is_done_all_the_same(
    make_driver: Callable[..., Driver],
) -> None:
    """It would be trained to its end again and again, by one trainer after the other."""
    driver = make_driver("plain")
    driver.add_job(toy_rows(20, 1))
    driver.run_until_done()
    last = driver.steps()[-1].global_step
    driver = make_driver("skipped")
    driver.add_job(toy_rows(20, 1))
    trap(driver, nan_steps=[last])
    driver.run_until_done(entry="trap")
    newest = driver.newest()
    assert newest is not None
    assert (newest.manifest.global_step, newest.manifest.extra["skipped_steps"]) == (last, 1)
    assert_finite(newest.folder)
