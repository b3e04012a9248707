"""Versions with real training of the toy model, through the daemon, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import guarded
import pytest
from daemon_harness import Harness, chat_rows, wait_for

from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.hashing import hash_file
from trainer_tui.safety.workspace import Workspace

pytestmark = pytest.mark.end_to_end
SETTINGS = """
max_length = 256
pack_tokens = 512
tokens_per_step = 512
learning_rate = 1e-3
warmup_steps = 8
eval_steps = 1000
save_steps = 5
[validation]
rows = 4
[versioning]
on_new_best = false
[retention]
versions_with_optimizer = 1
[supervision]
backoff_s = [0.1]
"""
PATIENCE_S = 120.0


def base_model(workspace: Workspace) -> dict[str, tuple[str, int]]:
    """What is in its folder: content and time of change of every file."""
    return {
        str(path.relative_to(workspace.models)): (hash_file(path), path.stat().st_mtime_ns)
        for path in (workspace.models / "base").rglob("*")
        if path.is_file()
    }


BASE_BEFORE: dict[str, tuple[str, int]] = {}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Harness]:
    """A file is learnt; the tests go on from there, one after the other."""
    place = tmp_path_factory.mktemp("real")
    workspace = guarded.real_workspace(place / "ws", guarded.tiny_base(place / "base"), SETTINGS)
    BASE_BEFORE.update(base_model(workspace))
    harness = Harness(workspace, "trainer_tui.engine.entry").start()
    learn(harness, "a")
    yield harness
    harness.close()


def learn(daemon: Harness, name: str, rows: int = 60) -> None:
    """Drop a file and wait until it is in a checkpoint."""
    (daemon.workspace.inbox / f"{name}.jsonl").write_bytes(chat_rows(rows, name))
    daemon.until_job(f"{name}.jsonl", "completed", PATIENCE_S)
    daemon.until_training("idle", PATIENCE_S)


def verb(daemon: Harness, *words: str, code: int = 0, types: str = "") -> str:
    """Run `trainer-tui`; its output, errors behind. `types`: what the person answers."""
    command = [sys.executable, "-m", "trainer_tui.tui.cli", "-w", str(daemon.workspace.root)]
    done = subprocess.run(
        [*command, *words], input=types, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout + done.stderr


def newest(daemon: Harness) -> manifest.Manifest:
    found = checkpoints.newest_verified(daemon.workspace.current_model)
    assert found is not None
    return found.manifest


def learnt(daemon: Harness) -> list[str]:
    """Files in the current model, oldest first."""
    entries = manifest.ledger_entries(daemon.workspace.ledger, newest(daemon).ledger)
    return [entry.name for entry in entries][::-1]


def record(daemon: Harness, number: int) -> dict[str, object]:
    name = daemon.get(f"/v1/versions/{number}")["name"]
    found: dict[str, object] = json.loads(
        (daemon.workspace.versions / name / "VERSION.json").read_bytes()
    )
    return found


def test_a_persons_version_says_how_good_its_very_step_is_on_the_whole_set(daemon):
    verb(daemon, "versions", "create", "-m", "after a")
    step = newest(daemon).global_step
    kept = record(daemon, 1)
    assert kept["global_step"] == step and 0 < kept["validation"]["fixed"] < 20
    at, set_id = newest(daemon).extra["measured"]
    assert at == step
    shown = daemon.get("/v1/versions/1")
    assert (shown["validation_set"], shown["measured_at"]) == (set_id, step)
    assert f"set {set_id}" in verb(daemon, "versions", "show", "1")
    assert [file["name"] for file in kept["files"]] == ["a.jsonl"]
    rows = manifest.ledger_entries(daemon.workspace.ledger, newest(daemon).ledger)
    [entry] = list(rows)
    assert kept["files"][0]["val_after"] == entry.val_after
    assert shown["impact"]["minutes"] >= 0 and shown["impact"]["tokens"] == entry.tokens


def test_what_was_trained_since_stays_out_of_the_queue_unless_one_asks_for_it(daemon):
    learn(daemon, "b")
    learn(daemon, "c")
    verb(daemon, "versions", "create", "-m", "after b and c")
    learn(daemon, "d")
    assert learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]

    told = verb(daemon, "versions", "restore", "2", "--yes")
    assert "d.jsonl" in told and "waits again" not in told and "kept as e001" in told
    daemon.until_training("idle", PATIENCE_S)
    assert learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"], "not d, which nobody asked for"
    assert daemon.job("d.jsonl")["state"] == "completed"

    before = newest(daemon).global_step
    told = verb(daemon, "versions", "rollback", types="y\ny\n")
    assert "put these 2 files back into the queue?" in told
    assert told.index("b.jsonl waits again") < told.index("c.jsonl waits again")
    wait_for(lambda: learnt(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"], PATIENCE_S)
    daemon.until_training("idle", PATIENCE_S)
    assert newest(daemon).lineage == 2 and newest(daemon).global_step > before + 1
    [b] = [job for job in daemon.jobs() if job["name"] == "b.jsonl" and job["id"] == 5]
    assert b["state"] == "completed"

    refused = verb(daemon, "versions", "restore", "1", code=1, types="n\n")
    assert "undoes what 2 file(s)" in refused and newest(daemon).lineage == 2


def test_a_version_without_its_optimizer_says_so_and_warms_up_again(daemon):
    wait_for(lambda: daemon.get("/v1/versions/1")["weights_only"], PATIENCE_S)  # only v002 keeps it
    assert "weights only" in verb(daemon, "versions", "list")
    told = verb(daemon, "versions", "restore", "1", "--no-requeue", types="y\n")
    assert "comes without its optimizer" in told and "warms up again" in told
    restored = newest(daemon)
    assert restored.weights_only and restored.warmup_origin == restored.global_step
    learn(daemon, "e")
    rates = daemon.get("/v1/metrics?series=learning_rate&points=5000")["series"]["learning_rate"]
    since = [point["mean"] for point in rates if point["step"] > restored.global_step]
    assert since[0] == pytest.approx(1e-3 / 8, rel=0.01), "the first of eight steps of warm-up"
    assert since == sorted(since)
    assert not newest(daemon).weights_only, "from the next save on it is whole again"

    told = verb(daemon, "versions", "restore", "2", "--weights-only", "--yes")
    assert "warms up again" in told and newest(daemon).weights_only
    verb(daemon, "versions", "restore", "2", "--yes")
    assert not newest(daemon).weights_only


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # its other names keep the sound content
    path.write_bytes(data)


def test_a_corrupt_version_is_refused_with_the_reason_while_training_goes_on(daemon):
    folder = daemon.workspace.versions / daemon.get("/v1/versions/1")["name"]
    damage(folder / "model.safetensors")
    (daemon.workspace.inbox / "long.jsonl").write_bytes(chat_rows(6000, "long"))
    wait_for(lambda: (daemon.training()["job"] or {}).get("step", 0) > 3, PATIENCE_S)
    trainer, at = (daemon.training()[key] for key in ("trainer_pid", "global_step"))
    lineage = daemon.training()["lineage"]
    refused = verb(daemon, "versions", "restore", "1", "--yes", code=1)
    assert "model.safetensors does not match its hash" in refused
    wait_for(lambda: daemon.training()["global_step"] > at + 3, PATIENCE_S)
    now = daemon.training()
    assert (now["trainer_pid"], now["lineage"], now["restarts"]) == (trainer, lineage, 0)
    assert len(daemon.get("/v1/versions/emergencies")["emergencies"]) == 5
    assert "corrupt" in verb(daemon, "versions", "list")


def test_the_disk_page_names_what_versions_would_let_go_and_why(daemon):
    said = verb(daemon, "disk")
    assert "when space is short, in this order" in said
    assert "the optimizer of checkpoint-" in said and "not the last emergency backup" in said
    offers = daemon.get("/v1/disk")["would_go"]
    assert {offer["owner"] for offer in offers} >= {"versions"}
    assert all(offer["bytes"] > 0 and offer["why"] for offer in offers)


def test_the_base_model_is_as_it_was_put_there(daemon):
    """After training, versions, restores with and without optimizer, retention and a refusal."""
    assert any(name.endswith(".safetensors") for name in BASE_BEFORE)
    assert base_model(daemon.workspace) == BASE_BEFORE


def test_the_best_figure_after_a_restart_is_of_the_whole_set_in_use(daemon):
    """History has slices in it, which can be lower; what is committed has whole looks only."""
    assert daemon.stop() == 0
    kept = [*checkpoints.list_folders(daemon.workspace.current_model)]
    kept += daemon.workspace.versions.glob("v00[2-9]_*")  # v001 was damaged
    found = [manifest.read(folder) for folder in kept]
    in_use = newest(daemon).extra["measured"][1]
    figures = [m.validation["fixed"] for m in found if m.extra["measured"][1] == in_use]
    daemon.start()
    assert daemon.training()["best_val_loss"] == min(figures)
