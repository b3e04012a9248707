"""Files lost with a damaged checkpoint are trained again, by the ledger and without any clock."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from daemon_harness import SUPPORT, Harness, plant, wait_for
from stub_trainer import tiny_safetensors

from trainer_tui.daemon import curves, ledger_note
from trainer_tui.daemon.curves import Point
from trainer_tui.safety import manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import LedgerEntry, LedgerHead, Manifest
from trainer_tui.safety.workspace import Workspace

SETTINGS = "[versioning]\non_new_best = false\nafter_every_file = false\n"
A_MONTH_AHEAD = """
from datetime import UTC, datetime, timedelta
from trainer_tui.safety import clock
def now_iso() -> str:
    late = datetime.now(UTC) + timedelta(days=30)
    return late.isoformat(timespec="milliseconds").replace("+00:00", "Z")
clock.now_iso = now_iso
"""
LOST = "was lost with a damaged checkpoint"


def learn(daemon: Harness, *names: str, env: dict[str, str] | None = None) -> None:
    """Start a daemon, train these files in their order and end it."""
    for name in names:
        plant(daemon.workspace, name)
    daemon.start(env=env)
    for name in names:
        daemon.until_job(name, "completed")
    daemon.until_training("idle")
    daemon.stop()


@pytest.fixture
def ahead(tmp_path: Path) -> dict[str, str]:
    """An environment in which the daemon and its trainer have a clock a month ahead."""
    (tmp_path / "sitecustomize.py").write_text(A_MONTH_AHEAD)
    return {"PYTHONPATH": f"{tmp_path}:{SUPPORT}"}


def damage_newest(workspace: Workspace) -> None:
    folders = [path for path in workspace.current_model.glob("checkpoint-*") if path.suffix == ""]
    newest = max(folders, key=lambda path: int(path.name.split("-")[1]))
    weights = newest / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"\0" * len(tiny_safetensors(1)))


def names(daemon: Harness) -> list[str]:
    return sorted(job["name"] for job in daemon.jobs())


def test_files_finished_while_the_clock_was_ahead_are_trained_once(serve, ahead):
    daemon = serve(settings=SETTINGS)
    learn(daemon, "a.jsonl", "b.jsonl", env=ahead)
    learn(daemon, "c.jsonl")
    learn(daemon, "d.jsonl")
    daemon.start()
    assert names(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert not daemon.said(LOST)


def test_a_lost_file_is_found_although_the_clock_went_back(serve, ahead):
    """Its checkpoint was lost, and the one before it says it was made a month later."""
    daemon = serve(settings=SETTINGS)
    learn(daemon, "a.jsonl", env=ahead)
    learn(daemon, "b.jsonl")
    damage_newest(daemon.workspace)
    learn(daemon, "c.jsonl")
    daemon.start()
    wait_for(lambda: not daemon.status()["queue"]["waiting"])
    assert names(daemon) == ["a.jsonl", "b.jsonl", "b.jsonl", "c.jsonl"]
    assert len(daemon.said(LOST)) == 1


def test_what_a_restore_took_out_stays_out_after_damage(serve):
    """Nobody wanted it back. What was learnt after the restore is what the damage cost."""
    daemon = serve(settings=SETTINGS)
    learn(daemon, "a.jsonl")
    daemon.start()
    number = daemon.post("/v1/versions", {"description": "v"})["number"]
    daemon.stop()
    learn(daemon, "b.jsonl")
    daemon.start()
    daemon.post(f"/v1/versions/{number}/restore")
    daemon.stop()
    learn(daemon, "c.jsonl")
    damage_newest(daemon.workspace)
    learn(daemon, "d.jsonl")
    daemon.start()
    wait_for(lambda: not daemon.status()["queue"]["waiting"])
    assert names(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl", "c.jsonl", "d.jsonl"]


def test_a_lost_file_whose_job_is_gone_is_said(serve):
    daemon = serve(settings=SETTINGS)
    learn(daemon, "a.jsonl")
    learn(daemon, "b.jsonl")
    damage_newest(daemon.workspace)
    [job] = daemon.workspace.queue.glob("recently_completed/*b.jsonl*")
    job.rename(daemon.workspace.trash / f"job.{job.name}")
    learn(daemon, "c.jsonl")
    daemon.start()
    assert daemon.said("#2 b.jsonl was lost with a damaged checkpoint, and its job is no longer")


# --- the note itself -----------------------------------------------------------------------------


def entry(job_id: int) -> LedgerEntry:
    return LedgerEntry(job_id, f"{job_id}.jsonl", f"{job_id:064x}", 1, 1, 1, 1, 1, job_id, "")


def committed(lineage: int, ledger: LedgerHead | None) -> Manifest:
    return Manifest(
        created_at="", global_step=1, lineage=lineage, parent="", reason="", tokens=1,
        supervised_tokens=1, cursors=[], lr_factor=1.0, schedule_origin=0, warmup_origin=0,
        config_hash="", template_hash="", tokenizer_hash="", base_model="", weights_only=False,
        ledger=ledger, files=[],
    )  # fmt: skip


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.prepare()
    return made


def lost_ids(space: Workspace, in_use: Manifest) -> list[int]:
    return [found.job_id for found in ledger_note.lost(space, in_use)]


def test_without_a_note_nothing_is_lost(space: Workspace) -> None:
    head = manifest.write_segment(space.ledger, None, [entry(1)])
    assert lost_ids(space, committed(0, head)) == []


def test_an_older_ledger_does_not_replace_the_note_before_it_is_settled(space: Workspace) -> None:
    first = manifest.write_segment(space.ledger, None, [entry(1)])
    second = manifest.write_segment(space.ledger, first, [entry(2), entry(3)])
    other = manifest.write_segment(space.ledger, first, [entry(4)])
    after = manifest.write_segment(space.ledger, other, [entry(5)])
    for seen in (first, second, first, other, after):  # the last three: training went back
        ledger_note.advance(space, committed(0, seen))
    assert lost_ids(space, committed(0, first)) == [2, 3]
    ledger_note.settle(space, committed(0, after))
    assert lost_ids(space, committed(0, after)) == []
    assert lost_ids(space, committed(0, first)) == [4, 5]


def test_a_restore_loses_nothing_and_going_back_behind_it_does(space: Workspace) -> None:
    first = manifest.write_segment(space.ledger, None, [entry(1)])
    left = manifest.write_segment(space.ledger, first, [entry(2)])
    grown = manifest.write_segment(space.ledger, first, [entry(3)])
    ledger_note.advance(space, committed(0, left))
    assert lost_ids(space, committed(1, first)) == []
    ledger_note.advance(space, committed(1, first))
    ledger_note.advance(space, committed(1, grown))
    assert lost_ids(space, committed(0, left)) == [3]


def test_a_note_whose_ledger_cannot_be_read_raises(space: Workspace) -> None:
    first = manifest.write_segment(space.ledger, None, [entry(1)])
    second = manifest.write_segment(space.ledger, first, [entry(2)])
    ledger_note.advance(space, committed(0, second))
    manifest.segment_path(space.ledger, second).unlink()
    with pytest.raises(Corrupt):
        ledger_note.lost(space, committed(0, first))
    (space.state / ledger_note.NOTE).write_text("{")
    assert lost_ids(space, committed(0, first)) == []


def test_a_training_from_the_base_model_on_begins_the_curves_anew(serve):
    daemon = serve(settings=SETTINGS)
    daemon.workspace.prepare()
    with contextlib.closing(sqlite3.connect(daemon.workspace.history_file)) as base, base:
        base.executescript(curves.SCHEMA)
        curves.insert(base, [Point("loss", step, 0.0, 9.0) for step in range(70_000, 70_100)])
        base.execute("INSERT INTO floors VALUES ('loss', 0, 65536)")
    learn(daemon, "a.jsonl")
    with contextlib.closing(sqlite3.connect(daemon.workspace.history_file)) as base:
        steps = [step for (step,) in base.execute("SELECT step FROM points WHERE series = 'loss'")]
        assert steps and max(steps) < 1000
        assert base.execute("SELECT count(*) FROM floors").fetchone() == (0,)
