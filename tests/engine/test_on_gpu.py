"""The same promises on a GPU: asynchronous capture, exact resume in deterministic mode, memory.

`python -m pytest --gpu tests/engine/test_on_gpu.py` runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import engine_driver
import pytest
from engine_driver import Driver, toy_rows

from trainer_tui.safety import checkpoints
from trainer_tui.safety.messages import Committed, Ready, Said, StepDone

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _time_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    # float32 under autocast compiles for half a minute where several tests run at once.
    monkeypatch.setattr(engine_driver, "DEADLINE_S", 200.0)


GPU = {
    "tokens_per_step": 2048,
    "pack_tokens": 1024,
    "max_length": 512,
    "micro_batch_tokens": 1024,
    "save_steps": 4,
}


def run(driver: Driver, *, kill_at: int = 0, entry: str = "trainer_tui.engine.entry") -> None:
    for seed in range(2):
        driver.add_job(toy_rows(300, seed))
    if kill_at:
        driver.start(method="spawn", entry=entry)
        driver.wait_for(StepDone, lambda m: m.global_step >= kill_at)
        driver.kill_all()
        driver.collect()
    driver.run_until_done(method="spawn", entry=entry)


def test_a_gpu_trains_commits_while_it_trains_and_others_load_the_result(
    make_driver: Callable[..., Driver],
) -> None:
    from transformers import AutoModelForCausalLM

    driver = make_driver(**GPU)
    config = driver.workspace.models / "base" / "config.json"
    settings = json.loads(config.read_text()) | {"attention_dropout": 0.0}
    config.write_text(json.dumps(settings))  # without dropout the fast backends are used
    run(driver)
    ready = driver.wait_for(Ready)
    print(ready)
    assert (ready.device, ready.precision) == ("cuda", "master")
    losses = [m.loss for m in driver.steps()]
    assert losses[-1] < losses[0]
    assert [m.global_step for m in driver.steps()] == list(range(1, len(losses) + 1))
    assert len(driver.all_of(Committed)) >= 3
    for folder in checkpoints.list_folders(driver.workspace.current_model):
        checkpoints.verify(folder)
    newest = driver.newest()
    assert newest is not None
    AutoModelForCausalLM.from_pretrained(newest.folder)


def test_a_file_change_on_a_gpu_compiles_nothing_again(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(**GPU)
    config = driver.workspace.models / "base" / "config.json"
    settings = json.loads(config.read_text()) | {"attention_dropout": 0.0}
    config.write_text(json.dumps(settings))  # without dropout the fast backends are used
    (driver.workspace.root / "trap.json").write_text(json.dumps({"trace": True}))
    for seed, rows in enumerate((300, 37, 220)):
        driver.add_job(toy_rows(rows, seed))
    driver.run_until_done(method="spawn", entry="trap")
    graphs: dict[int, set[int]] = {}
    for line in (driver.workspace.root / "trace.jsonl").read_text().splitlines():
        step = json.loads(line)
        graphs.setdefault(step["job"], set()).add(step["graphs"])
    assert max(graphs[1]) > 0, "nothing was compiled: this proves nothing"
    assert graphs[2] == graphs[3] == {max(graphs[1])}


@pytest.mark.parametrize("precision", ["master", "fp32"])
def test_a_resume_on_a_gpu_is_bit_equal_in_deterministic_mode(
    make_driver: Callable[..., Driver], precision: str
) -> None:
    hashes = []
    for name, kill_at in (("whole", 0), ("killed", 7)):
        driver = make_driver(name, **GPU, deterministic=True, precision=precision)
        run(driver, kill_at=kill_at)
        newest = driver.newest()
        assert newest is not None
        hashes.append((driver.tensor_hash(), newest.manifest.global_step))
    assert hashes[0] == hashes[1]


def test_nans_on_a_gpu_are_skipped_without_waiting_and_never_committed(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(**GPU)
    (driver.workspace.root / "trap.json").write_text(json.dumps({"nan_steps": [3, 6]}))
    run(driver, entry="trap")
    assert [m.global_step for m in driver.steps() if m.skipped] == [3, 6]
    newest = driver.newest()
    assert newest is not None and newest.manifest.extra["skipped_steps"] == 2


def test_out_of_memory_on_a_gpu_halves_the_micro_batch(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(**GPU)
    (driver.workspace.root / "trap.json").write_text(json.dumps({"oom_tokens": 700}))
    run(driver, entry="trap")
    assert driver.newest() is not None
    kept = json.loads((driver.workspace.cache / "micro_batch.json").read_bytes())
    assert list(kept.values()) == [512]
    assert not any(m.level == "error" for m in driver.all_of(Said))
