"""The whole way with the real trainer: files dropped, the trainer killed, each row learnt once."""

from __future__ import annotations

import json
import os
import signal

import guarded
import pytest
from daemon_harness import Harness, chat_rows, wait_for

from trainer_tui.safety import checkpoints, manifest

SETTINGS = """
max_length = 256
pack_tokens = 512
tokens_per_step = 512
learning_rate = 1e-3
warmup_steps = 2
eval_steps = 4
save_steps = 2
[validation]
rows = 8
[versioning]
after_every_file = true
[supervision]
backoff_s = [0.1]
"""
ROWS = 300  # some twenty steps: much is left when the trainer is killed after three
PATIENCE_S = 120.0


@pytest.mark.end_to_end
def test_files_are_learnt_once_although_the_trainer_is_killed(tmp_path):
    base = guarded.tiny_base(tmp_path / "base")
    workspace = guarded.real_workspace(tmp_path / "ws", base, SETTINGS)
    for name in ("a", "b"):
        (workspace.inbox / f"{name}.jsonl").write_bytes(chat_rows(ROWS, name))
    daemon = Harness(workspace, "trainer_tui.engine.entry").start()
    try:
        wait_for(lambda: (daemon.training()["global_step"] or 0) >= 3, PATIENCE_S)
        os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
        wait_for(lambda: daemon.training()["restarts"] == 1)
        daemon.until_job("a.jsonl", "completed", PATIENCE_S)
        daemon.until_job("b.jsonl", "completed", PATIENCE_S)
        training = daemon.until_training("idle", PATIENCE_S)
        assert training["restarts"] == 1
        assert training["val_loss"] < training["loss"] + 10
        losses = daemon.get("/v1/metrics?series=loss,val_loss")["series"]
        assert losses["loss"] and losses["val_loss"]
        [incident] = wait_for(lambda: daemon.get("/v1/incidents")["incidents"])
        assert "SIGKILL" in incident["text"]
        versions = wait_for(lambda: daemon.get("/v1/versions")["versions"], PATIENCE_S)
        assert versions[0]["automatic"] and versions[0]["validation"], "made by itself, measured"
        answer = daemon.post("/v1/training/rate", {"factor": 0.5}, timeout_s=60)
        assert answer["status"]["training"]["lr_factor"] == 0.5
        assert daemon.call("POST", "/v1/training/rate", {"factor": 9}).status == 422
        assert daemon.stop() == 0
    finally:
        daemon.close()
    newest = checkpoints.newest_verified(workspace.current_model)
    assert newest.manifest.lr_factor == 0.5
    entries = list(manifest.ledger_entries(workspace.ledger, newest.manifest.ledger))
    assert sorted(entry.name for entry in entries) == ["a.jsonl", "b.jsonl"]
    steps = sum(entry.steps for entry in entries)
    assert newest.manifest.global_step == steps, "no step was done twice in what is committed"
    told = json.loads(workspace.status_file.read_bytes())
    assert told["global_step"] == steps and told["completed"] == 2
