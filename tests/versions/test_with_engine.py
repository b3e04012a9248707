"""With the real trainer: what is restored trains on as if nothing had happened in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints
from trainer_tui.safety.config import Config, Retention
from trainer_tui.versions import check, keeping
from trainer_tui.versions.store import VersionStore

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: bit-equality wants one thread
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from engine_driver import Driver, drivers, toy_rows

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def make_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    from trainer_tui.engine import toy_model

    model = tmp_path / "tiny"
    toy_model.build(model, seed=3, size="tiny")
    with drivers(tmp_path, model) as make:
        yield make


def newest_folder(driver: Driver) -> Path:
    return checkpoints.list_folders(driver.workspace.current_model)[0]


def test_training_goes_on_from_a_restored_version_as_if_nothing_had_happened(make_driver):
    """Train A, B. Elsewhere train A, keep it as a version, train C, go back, train B: the weights
    and moments are those of A, B, bit for bit."""
    first, second, other = (toy_rows(12, seed) for seed in (1, 2, 3))
    straight = make_driver("straight")
    straight.add_job(first)
    straight.run_until_done()
    straight.add_job(second)
    straight.run_until_done()

    detour = make_driver("detour")
    detour.add_job(first)
    detour.run_until_done()
    store = VersionStore(detour.workspace)
    store.create(newest_folder(detour), "after the first file")
    wrong = detour.add_job(other)
    detour.run_until_done()
    assert detour.tensor_hash() != straight.tensor_hash()
    left = detour.newest()
    done = store.rollback()
    assert [file.job_id for file in done.files_since] == [wrong.job_id]
    detour.add_job(second)
    detour.run_until_done()

    assert detour.tensor_hash() == straight.tensor_hash()
    newest = detour.newest().manifest
    assert newest.lineage == 1 and newest.global_step > left.manifest.global_step
    assert detour.ledger_ids() == {1, 3}  # the file that was undone is not in the model
    assert {version.live for version in store.list()} == {True}


def test_a_version_is_a_model_that_transformers_loads(make_driver):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    driver = make_driver("ws")
    driver.add_job(toy_rows(12, 1))
    driver.run_until_done()
    store = VersionStore(driver.workspace)
    version = store.create(newest_folder(driver), "m")
    thin = Config(retention=Retention(versions_with_optimizer=0))
    keeping.apply(driver.workspace, thin)
    assert store.get(1).weights_only
    check.prove_version(version.folder)
    exported = store.export(1, driver.workspace.root.parent / "out")
    for folder in (version.folder, exported):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("It is 5.", return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.isfinite(model(ids).logits).all()
    done = store.restore(1)
    assert done.weights_only
    driver.add_job(toy_rows(5, 2))
    driver.run_until_done()  # the trainer accepts it and warms up again
    assert driver.newest().manifest.warmup_origin == done.global_step
