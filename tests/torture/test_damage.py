"""Damaged checkpoints under a real trainer: the next older one is used; with none left it refuses.

The damage is done to a copy of a trained workspace, always to a file of its own (versions share
their bytes with checkpoints by links; what is written in place would hurt both).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import invariants
import pytest
from daemon_harness import chat_rows, wait_for
from guarded import SETTINGS, Guarded, real_workspace

from trainer_tui.safety import checkpoints
from trainer_tui.safety.workspace import Workspace

EVERY_SAVE = SETTINGS.replace("save_steps = 20", "save_steps = 8")


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    data = change(file.read_bytes())
    file.unlink()
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    _rewrite(folder / "model.safetensors", lambda data: data[: len(data) // 2])


def flip_a_bit(folder: Path) -> None:
    middle = (folder / "model.safetensors").stat().st_size // 2

    def flip(data: bytes) -> bytes:
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    _rewrite(folder / "model.safetensors", flip)


def zero_the_end(folder: Path) -> None:
    _rewrite(folder / "model.safetensors", lambda data: data[:-8192] + bytes(8192))


def no_optimizer(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def no_state(folder: Path) -> None:
    (folder / "trainer_state.json").unlink()


def state_without_rng(folder: Path) -> None:
    _rewrite(folder / "trainer_state.json", lambda data: b"{}")


def empty_manifest(folder: Path) -> None:
    _rewrite(folder / "MANIFEST.json", lambda data: b"")


def manifest_of_another_step(folder: Path) -> None:
    other = checkpoints.list_folders(folder.parent)[1]
    _rewrite(folder / "MANIFEST.json", lambda data: (other / "MANIFEST.json").read_bytes())


def swapped_files(folder: Path) -> None:
    weights, optimizer = folder / "model.safetensors", folder / "optimizer.safetensors"
    first, second = weights.read_bytes(), optimizer.read_bytes()
    _rewrite(weights, lambda data: second)
    _rewrite(optimizer, lambda data: first)


DAMAGES = (
    truncate, flip_a_bit, zero_the_end, no_optimizer, no_state, state_without_rng,
    empty_manifest, manifest_of_another_step, swapped_files,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base) -> Path:
    """A workspace with three checkpoints and a version of the first file, at rest."""
    root = tmp_path_factory.mktemp("trained") / "ws"
    workspace = real_workspace(root, base, EVERY_SAVE)
    house = Guarded(workspace)
    try:
        house.drop("a.jsonl", chat_rows(60, "a"))
        house.begin()
        house.all_done(1, 90)
        house.post("/v1/versions", {"description": "all of a"}, timeout_s=60)
        house.drop("b.jsonl", chat_rows(60, "b"))
        house.all_done(2, 90)
        house.end()
    finally:
        house.sweep()
    assert len(checkpoints.list_folders(workspace.current_model)) >= 3
    return root


def a_copy(trained: Path, root: Path) -> Workspace:
    shutil.copytree(trained, root, symlinks=True)
    return Workspace(root)


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, trained, record, torture, rounds):
    if not torture:
        pytest.skip("minutes long: make torture; tests/engine does it without a daemon")
    for number, damage in enumerate(DAMAGES * rounds):
        words = damage.__name__.replace("_", " ")
        workspace = a_copy(trained, tmp_path / str(number))
        house = Guarded(workspace)
        with record.run(f"checkpoint: {words}", "passed_over"):
            newest = checkpoints.list_folders(workspace.current_model)[0]
            before = int(newest.name.partition("-")[2])
            damage(newest)
            try:
                house.drop("c.jsonl", chat_rows(60, "c"))
                house.begin()
                wait_for(
                    lambda h=house: (
                        h.job("c.jsonl")["state"] == "completed" if h.job("c.jsonl") else None
                    ),
                    90,
                    f"{words}: c is learnt",
                )
                assert house.ask()["global_step"] >= before, "it did not begin at step 0"
                assert list(workspace.current_model.glob(f"{newest.name}.bad*"))
                assert house.said("damaged") or house.said(newest.name)
                house.end()
                invariants.checkpoints_are_sound(workspace)
            except AssertionError as problem:
                raise AssertionError(f"{words}: {problem}\n{house.tail()}") from problem
            finally:
                house.sweep()


@pytest.mark.end_to_end
@pytest.mark.timeout(300)
def test_with_every_checkpoint_damaged_it_refuses_and_offers_versions(
    tmp_path, trained, record, torture
):
    if not torture:
        pytest.skip("needs a trained workspace: make torture")
    workspace = a_copy(trained, tmp_path / "ws")
    house = Guarded(workspace)
    with record.run("checkpoint: all damaged", "every_checkpoint"):
        damaged = checkpoints.list_folders(workspace.current_model)
        for folder in damaged:
            flip_a_bit(folder)
        try:
            house.drop("c.jsonl", chat_rows(60, "c"))
            house.begin()
            training = house.until_training("degraded", 60)
            told = json.dumps(training) + json.dumps(house.said("")[:20])
            assert "versions restore" in told, told
            assert not any(n.name == "checkpoint-0" for n in workspace.current_model.iterdir())
            [version] = [v for v in house.get("/v1/versions")["versions"] if v["state"] == "ok"][:1]
            house.post(f"/v1/versions/{version['number']}/restore", {}, timeout_s=90)
            house.post("/v1/training/resume", {}, timeout_s=90)
            house.until_job("c.jsonl", "completed", 90)
            assert house.ask()["global_step"] > version["global_step"]
            house.end()
            for folder in damaged:  # the ones nobody looked at still stand there
                shutil.rmtree(folder, ignore_errors=True)
            invariants.checkpoints_are_sound(workspace)
        except AssertionError as problem:
            raise AssertionError(f"{problem}\n{house.tail()}") from problem
        finally:
            house.sweep()
