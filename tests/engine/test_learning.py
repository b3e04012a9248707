"""It learns, measures what it does not train, and keeps its place in the schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_driver import Driver, Halt, toy_rows

from trainer_tui.data import toy_chats
from trainer_tui.data.validation import ValidationSet
from trainer_tui.safety.messages import (
    Committed,
    Evaluated,
    Failed,
    JobRefused,
    JobStarted,
    Ready,
    Reconfigure,
    Said,
    SaveNow,
    StepDone,
)


def test_the_loss_falls_on_toy_chats_and_the_unseen_rows_follow(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(
        epochs=3,
        eval_steps=10,
        learning_rate=1e-2,
        validation={"rows": 16, "holdout_rows": 8, "time_share": 1.0},
    )
    driver.add_job(toy_chats.generate(seed=5, rows_per_file=150).files[1].lines)
    driver.run_until_done()
    losses = [m.loss for m in driver.steps()]
    start, end = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert end < 0.6 * start
    fixed = [m for m in driver.all_of(Evaluated) if m.series == "fixed"]
    assert fixed[0].global_step == 0 and fixed[0].whole
    assert fixed[-1].loss < 0.7 * fixed[0].loss
    assert {m.series for m in driver.all_of(Evaluated)} == {"fixed", "holdout", "probe"}
    (entry,) = driver.ledger()
    assert entry.val_before == pytest.approx(fixed[0].loss)
    assert entry.val_after == pytest.approx(fixed[-1].loss)
    assert entry.val_after is not None and entry.val_after < 0.7 * fixed[0].loss


def test_validation_rows_and_holdout_never_train(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(validation={"rows": 12, "holdout_rows": 8})
    rows = toy_rows(120, 1)
    driver.add_job(rows)
    driver.add_job(rows[:60] + toy_rows(20, 2))  # many rows come again
    (driver.workspace.root / "trap.json").write_text(json.dumps({"trace": True}))
    driver.run_until_done(entry="trap")
    current = ValidationSet.current(driver.workspace.validation)
    assert current is not None and current.rows == 12
    withheld = {row.messages[0].content for row in current.conversations()}
    trained: dict[int, list[int]] = {1: [], 2: []}
    for line in (driver.workspace.root / "trace.jsonl").read_text().splitlines():
        step = json.loads(line)
        trained[step["job"]] += step["rows"]
    for job, lines in trained.items():
        path = Path(driver.jobs[job - 1].folder)
        path = driver.workspace.queue / "recently_completed" / path.name
        texts = (path / "data.jsonl").read_text().splitlines()
        assert len(lines) == len(set(lines))
        for number in lines:
            assert json.loads(texts[number - 1])["messages"][0]["content"] not in withheld
    assert len(trained[1]) == 120 - 12 - 8


def test_the_learning_rate_keeps_its_place_over_files_and_resumes(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(warmup_steps=12, save_steps=3)
    for seed in range(6):
        driver.add_job(toy_rows(9, seed))
    seen: dict[int, float] = {}
    for stop_at in (3, 7, 10):
        driver.start(halt=Halt(StepDone, stop_at))
        driver.wait_for(StepDone, lambda m, at=stop_at: m.global_step >= at)  # type: ignore[misc]
        driver.kill_all()
        driver.collect()
        seen |= {m.global_step: m.learning_rate for m in driver.steps()}
    driver.run_until_done()
    seen |= {m.global_step: m.learning_rate for m in driver.steps()}
    last = max(seen)
    assert last >= 15
    expected = {step: 3e-3 * min(1.0, step / 12) for step in range(1, last + 1)}
    assert seen == pytest.approx(expected)  # one warm-up in the model's life, constant after it


def test_settings_changed_in_the_middle_of_a_file_act_on_the_next_file(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(save_steps=1)
    driver.add_job(toy_rows(60, 1))
    driver.add_job(toy_rows(60, 2))
    driver.start(halt=Halt(StepDone, 5))
    first = driver.wait_for(JobStarted)
    driver.wait_for(StepDone, lambda m: m.global_step >= 5)
    driver.stop()
    driver.config = driver.config.model_copy(update={"tokens_per_step": 1024, "pack_tokens": 1024})
    driver.start()
    again = driver.wait_for(JobStarted)
    assert (again.job_id, again.steps) == (1, first.steps) and again.step_index >= 5
    after = driver.wait_for(JobStarted, lambda m: m.job_id == 2)
    assert after.steps < first.steps / 2
    driver.wait_all_done()
    driver.stop()


def test_another_chat_template_refuses_the_started_file_with_a_sentence(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(save_steps=1)
    driver.add_job(toy_rows(60, 1))
    driver.start(halt=Halt(StepDone, 3))
    driver.wait_for(StepDone, lambda m: m.global_step >= 3)
    driver.stop()
    template = driver.workspace.models / "base" / "chat_template.jinja"
    template.write_text(template.read_text().replace("'\\n'", "'\\n\\n'"))
    driver.start()
    refused = driver.wait_for(JobRefused)
    assert refused.error_class == "plan_changed"
    assert "another chat template" in refused.message and refused.hint
    driver.stop()


def test_a_file_that_cannot_be_trained_is_refused_and_the_next_one_trains(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    bad = driver.add_job(["not json", "{}"])
    edited = driver.add_job(toy_rows(5, 1))
    (Path(edited.folder) / "data.jsonl").write_text("\n".join(toy_rows(5, 9)))
    good = driver.add_job(toy_rows(5, 2))
    driver.start()
    driver.wait_for(StepDone)
    refused = {m.job_id: m for m in driver.all_of(JobRefused)}
    assert refused[bad.job_id].error_class == "data_error"
    assert "changed after it was queued" in refused[edited.job_id].message
    driver.stop()
    assert driver.ledger_ids() <= {good.job_id}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda base: (base / "config.json").unlink(), "no config.json"),
        (lambda base: (base / "tokenizer.json").unlink(), "no tokenizer.json"),
        (
            lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"),
            "only pickled weights",
        ),
        (
            lambda base: (base / "config.json").write_text(
                json.dumps({"model_type": "mystery", "auto_map": {"AutoModel": "x.py"}})
            ),
            "code of its own",
        ),
        (lambda base: (base / "model.safetensors").write_bytes(b"\x08" * 64), "cannot be loaded"),
    ],
)
def test_a_base_model_that_cannot_be_used_is_a_sentence(
    make_driver: Callable[..., Driver], spoil: Callable[[Path], object], words: str
) -> None:
    driver = make_driver()
    spoil(driver.workspace.models / "base")
    driver.start()
    failed = driver.wait_for(Failed)
    assert failed.error_class == "config" and words in failed.message
    assert driver.wait_end() == 1


def test_a_missing_base_model_and_no_network_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer_tui.engine.base_model import ModelRefused, ensure_base_model
    from trainer_tui.safety.config import Config

    for name, words in (("nobody/nothing", "cannot be fetched"), ("local", "is not there")):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        config = Config(model_name=name)
        with pytest.raises(ModelRefused, match=words):
            ensure_base_model(config, tmp_path, lambda moved: None)
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_trainer_starts_as_the_daemon_starts_it(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.add_job(toy_rows(5, 1))
    driver.start(method="spawn")
    ready = driver.wait_for(Ready)
    assert (ready.device, ready.precision, ready.global_step) == ("cpu", "fp32", 0)
    driver.wait_all_done()
    assert driver.stop() == 0
    assert not any(m.level == "error" for m in driver.all_of(Said))
    assert all(math.isfinite(m.loss) for m in driver.steps())


def test_a_behaviour_profile_trains_and_reports_its_figures(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(
        eval_steps=4,
        epochs=2,
        behaviour={"stop_emojis": ["🙂"], "stop_weight": 4.0, "think": "forbid"},
        validation={"rows": 12, "holdout_rows": 0, "time_share": 1.0},
    )
    driver.add_job(toy_rows(120, 1))
    driver.run_until_done()
    figures = [m.extra["p_further_emoji"] for m in driver.steps() if "p_further_emoji" in m.extra]
    ends = [m.extra["p_end_after_stop"] for m in driver.steps() if "p_end_after_stop" in m.extra]
    assert ends[-1] > ends[0]
    assert 0 <= figures[-1] < 1


def test_a_rate_that_a_person_sets_holds_from_the_next_step_and_is_committed(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(warmup_steps=1)
    driver.add_job(toy_rows(20, 1))
    driver.start()
    driver.wait_for(Committed)
    driver.wait_all_done()
    before = driver.newest()
    assert before is not None and before.manifest.lr_factor == 1.0
    driver.send(Reconfigure({"lr_factor": 0.25}))
    driver.send(SaveNow())
    driver.wait_for(Committed, lambda message: message.reason == "asked")
    newest = driver.newest()
    assert newest is not None and newest.manifest.global_step == before.manifest.global_step
    assert newest.manifest.lr_factor == 0.25, "although no step was unsaved"
    driver.stop()
    driver.add_job(toy_rows(20, 2))
    driver.run_until_done()
    assert {step.learning_rate for step in driver.steps()} == {3e-3 * 0.25}
