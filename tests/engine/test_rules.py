"""The engine's pure rules: learning rate, when to commit, slices, incidents, micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from trainer_tui.engine import incidents
from trainer_tui.engine.commit_policy import SavePolicy, Unsaved, due
from trainer_tui.engine.evaluate import Budget, Result, Series, affordable, slice_of
from trainer_tui.engine.incidents import Watch
from trainer_tui.engine.micro_batches import split
from trainer_tui.engine.schedule import CoolDown, Position, Schedule, learning_rate
from trainer_tui.safety.config import Ladder

CONSTANT = Schedule(1.0, "constant", 4, 0)


def rate(schedule: Schedule, step: int, file_step: int = 0, file_steps: int = 10) -> float:
    return learning_rate(schedule, Position(step, file_step, file_steps))


def test_the_warm_up_happens_once_and_then_the_rate_is_constant_for_ever() -> None:
    assert [rate(CONSTANT, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate(CONSTANT, 10**9) == 1.0
    again = replace(CONSTANT, warmup_origin=100)
    assert [rate(again, step) for step in (100, 103, 104)] == [0.25, 1.0, 1.0]


def test_cosine_and_linear_fall_over_one_file_and_begin_anew_with_the_next() -> None:
    for shape in ("cosine", "linear"):
        schedule = Schedule(1.0, shape, 0, 0)  # type: ignore[arg-type]
        rates = [rate(schedule, 50 + step, step) for step in range(10)]
        assert rates[0] == 1.0 and rates == sorted(rates, reverse=True) and rates[-1] > 0
        assert rate(schedule, 60, 0) == 1.0
        assert rate(schedule, 55, 5) == pytest.approx(0.5)


def test_the_factor_multiplies_and_a_cool_down_ends_at_zero() -> None:
    halved = replace(CONSTANT, factor=0.5)
    assert rate(halved, 1000) == 0.5
    cooling = replace(CONSTANT, cool_down=CoolDown(1000, 10))
    assert [rate(cooling, step) for step in (999, 1000, 1005, 1010, 5000)] == [1, 1, 0.5, 0, 0]


def test_small_files_gather_until_the_interval_is_over() -> None:
    policy = SavePolicy(save_steps=100, min_save_interval_s=300)
    assert due(policy, Unsaved(500, 20, 299.0), at_file_end=True) is None
    assert due(policy, Unsaved(3, 1, 301.0), at_file_end=True) == "file_done"
    assert due(policy, Unsaved(3, 1, 301.0), at_file_end=False) is None
    assert due(policy, Unsaved(100, 0, 301.0), at_file_end=False) == "save_steps"
    assert due(policy, Unsaved(0, 0, 1e9), at_file_end=True) is None


def test_slices_rotate_and_cover_the_set() -> None:
    turns = [slice_of(150, 64, turn) for turn in range(3)]
    assert sorted(chain(*turns)) == list(range(150))
    assert slice_of(150, 64, 3) == turns[0]
    assert slice_of(10, 64, 7) == list(range(10))


def test_evaluation_spends_no_more_than_its_share_of_the_training_time() -> None:
    budget = Budget(0.05)
    budget.spend(1.0, 1000)  # the first look: one millisecond a token
    assert affordable([100] * 10, budget) == 0
    budget.earn(30.0)  # pays 1.5 s, of which 1 s is owed
    assert affordable([100] * 10, budget) == 5
    series = Series("fixed", "a", 1, lambda index: ([], []))  # type: ignore[arg-type, return-value]
    assert budget.first_look(series) and not budget.first_look(series)


def test_micro_batches_keep_whole_documents_in_plan_order_within_the_budget() -> None:
    packs = [[5, 3], [4, 4], [9], [2]]
    for budget in (1, 4, 8, 16, 100):
        batches = list(split(packs, budget, lambda size: size))
        assert list(chain(*batches)) == list(chain(*packs))
        assert all(sum(batch) <= budget or len(batch) == 1 for batch in batches)
    assert list(split(packs, 100, lambda size: size)) == [[5, 3, 4, 4, 9, 2]]


def steady(count: int = 40) -> Watch:
    watch = Watch()
    for _ in range(count):
        watch, found = incidents.after_step(watch, 2.0, 1.0, False)
        assert found is None
    return watch


def test_one_hard_batch_is_no_divergence_but_five_are() -> None:
    watch, found = incidents.after_step(steady(), 9.0, 1.0, False)
    assert found is None
    watch, found = incidents.after_step(watch, 2.0, 1.0, False)
    for _ in range(4):
        watch, found = incidents.after_step(watch, 9.0, 1.0, False)
        assert found is None
    watch, found = incidents.after_step(watch, 9.0, 1.0, False)
    assert found is not None and found.kind == "divergence"


def test_nans_are_counted_in_a_row() -> None:
    watch = steady()
    for expected in (1, 2, 3):
        watch, found = incidents.after_step(watch, math.nan, math.nan, True)
        assert found is not None and found.figures == {"in_a_row": expected}
    watch, _ = incidents.after_step(watch, 2.0, 1.0, False)
    assert watch.nan_steps == 0


def result(series: str, loss: float, whole: bool = True) -> Result:
    return Result(series, "set", loss, 0.0, 8, 100, 0.1, whole)


def test_overfitting_needs_three_stale_holdouts_while_the_probe_falls() -> None:
    watch = Watch().of_job(1)
    found = None
    for holdout, probe in ((2.0, 1.9), (2.0, 1.7), (2.01, 1.5), (2.02, 1.3)):
        assert found is None
        watch, _ = incidents.after_evaluation(watch, result("probe", probe))
        watch, found = incidents.after_evaluation(watch, result("holdout", holdout))
    assert found is not None and found.kind == "overfitting"
    watch = Watch().of_job(1)  # the same holdouts while the probe rises: not overfitting
    for holdout, probe in ((2.0, 1.9), (2.0, 1.95), (2.01, 1.96), (2.02, 1.97), (2.03, 1.98)):
        watch, _ = incidents.after_evaluation(watch, result("probe", probe))
        watch, found = incidents.after_evaluation(watch, result("holdout", holdout))
        assert found is None


def test_forgetting_is_a_rise_of_the_fixed_set_while_the_holdout_falls() -> None:
    watch = Watch().of_job(1)
    watch, _ = incidents.after_evaluation(watch, result("fixed", 1.0))
    watch, _ = incidents.after_evaluation(watch, result("holdout", 2.0))
    watch, found = incidents.after_evaluation(watch, result("fixed", 1.015))
    assert found is None
    watch, found = incidents.after_evaluation(watch, result("fixed", 1.5, whole=False))
    assert found is None  # a slice is not compared with the whole
    watch, found = incidents.after_evaluation(watch, result("fixed", 1.03))
    assert found is not None and found.kind == "forgetting"


def test_a_file_that_is_three_times_as_hard_is_no_divergence() -> None:
    watch, found = Watch(), []
    for job in range(1, 13):
        watch = watch.of_job(job)
        level = 0.3 if job % 2 else 1.4
        for _ in range(60):
            watch, incident = incidents.after_step(watch, level, level, False)
            found += [incident] if incident else []
    assert not found
    for _ in range(incidents.SPIKE_STEPS):  # in the middle of a file it is one
        watch, incident = incidents.after_step(watch, 4.5, 1.4, False)
    assert incident is not None and incident.kind == "divergence"


@pytest.mark.parametrize("steps", [3, 5, 9, 40])
def test_a_divergence_is_seen_however_short_the_files_are(steps: int) -> None:
    watch, loss, job = steady(), 2.0, 0
    for step in range(120):
        if step % steps == 0:
            job += 1
            watch = watch.of_job(job)
        loss = min(loss * 1.1, 1e6)
        watch, incident = incidents.after_step(watch, loss, 1.0, False)
        if incident is not None:
            break
    assert incident is not None and incident.kind == "divergence" and loss < 1e4


def test_a_file_that_begins_where_no_file_began_is_a_divergence() -> None:
    watch = steady()
    for job in range(1, 4):
        watch = watch.of_job(job)
        for _ in range(30):
            watch, incident = incidents.after_step(watch, 2.0, 1.0, False)
            assert incident is None
    watch = watch.of_job(9)
    found = [incidents.after_step(watch, 40.0, 1.0, False)[1]]
    for _ in range(incidents.SPIKE_STEPS):
        watch, incident = incidents.after_step(watch, 40.0, 1.0, False)
        found.append(incident)
    assert [incident.kind for incident in found if incident] == ["divergence"]
    for _ in range(100):
        watch, incident = incidents.after_step(watch, 40.0, 1.0, False)
        assert incident is None, "one divergence is one incident"


def test_after_calm_the_ladder_of_divergence_begins_at_its_foot() -> None:
    ladder = Ladder(divergence=("notify", "halve_lr"))
    watch, _ = incidents.climb(steady(), "divergence", ladder)
    for _ in range(incidents.CALM_STEPS):
        watch, _ = incidents.after_step(watch, 1.0, 1.0, False)
    assert incidents.climb(watch, "divergence", ladder)[1] == "notify"
    watch, _ = incidents.climb(steady(), "divergence", ladder)
    for step in range(incidents.CALM_STEPS):
        watch, _ = incidents.after_step(watch, 9.0 if step == 9 else 1.0, 1.0, False)
    assert incidents.climb(watch, "divergence", ladder)[1] == "halve_lr", "not calm all the time"


def test_forgetting_is_told_once_and_again_when_it_got_worse() -> None:
    watch = replace(Watch(), job_last_holdout=1.0, job_best_holdout=1.0)
    told = []
    for loss in (1.0, 1.05, 1.05, 1.06, 1.07, 1.08, 1.01, 1.05):
        watch, incident = incidents.after_evaluation(watch, result("fixed", loss))
        told += [loss] if incident else []
    assert told == [1.05, 1.08, 1.05], "and after a recovery"


def test_the_ladder_is_climbed_one_rung_at_a_time_and_the_last_one_stays() -> None:
    ladder = Ladder(divergence=("notify", "halve_lr"))
    watch, rungs = Watch(), []
    for _ in range(3):
        watch, rung = incidents.climb(watch, "divergence", ladder)
        rungs.append(rung)
    assert rungs == ["notify", "halve_lr", "halve_lr"]


def test_a_watch_survives_json_with_its_infinities() -> None:
    import json

    watch = steady().of_job(3)
    assert Watch.from_dict(json.loads(json.dumps(watch.as_dict()))) == watch


def test_a_missing_tensorboard_is_a_note_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from trainer_tui.engine.metrics import open_sinks

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    sinks, note = open_sinks(True, tmp_path)
    assert sinks == [] and "pip install tensorboard" in note
    assert open_sinks(False, tmp_path) == ([], "")


def test_tensorboard_reads_what_its_sink_wrote(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from trainer_tui.engine.metrics import open_sinks

    (sink,), note = open_sinks(True, tmp_path)
    assert note == ""
    for step in (1, 2, 3):
        sink.step(step, {"loss": 4.0 / step, "learning_rate": 0.5})
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["learning_rate", "loss"]
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [
        (1, 4.0),
        (2, 2.0),
        (3, pytest.approx(4 / 3)),
    ]


def test_a_hint_that_cannot_be_written_or_read_ends_nothing(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    import torch

    from trainer_tui.engine.trainer import _Remembered
    from trainer_tui.safety.workspace import Workspace

    workspace = Workspace(tmp_path)
    workspace.prepare()
    model = SimpleNamespace(parameters=lambda: [])
    session: Any = SimpleNamespace(
        device=torch.device("cpu"),
        loaded=SimpleNamespace(model=model, precision=SimpleNamespace(name="fp32")),
        stepper=SimpleNamespace(micro_batch_tokens=512),
    )
    remembered = _Remembered(workspace, session)
    remembered.note()
    assert remembered.limit(4096) == 512
    (workspace.cache / "micro_batch.json").unlink()
    (workspace.cache / "micro_batch.json").mkdir()
    remembered.note()
    assert remembered.limit(4096) == 4096
