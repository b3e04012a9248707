"""What is told of training is true also after a crash, a restore and an edit of the settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, datetime

from daemon_harness import Harness, chat_rows, make_workspace, plant, set_stub, wait_for

from trainer_tui.daemon import eta, job_view
from trainer_tui.daemon.figures import Figures
from trainer_tui.daemon.job_view import Context
from trainer_tui.queue.line import Work
from trainer_tui.queue.store import Queue
from trainer_tui.safety import checkpoints

LONG = {"steps": 100_000, "step_s": 0.005}


def test_steps_that_died_with_the_trainer_are_neither_told_nor_drawn(tmp_path) -> None:
    settings = "[versioning]\non_new_best = false\n[supervision]\nbackoff_s = [3.0]\n"
    workspace = make_workspace(tmp_path / "ws", settings, **LONG, save_every=50)
    plant(workspace, "long.jsonl")
    daemon = Harness(workspace).start()
    try:
        wait_for(lambda: daemon.training()["checkpoint"])
        wait_for(lambda: (daemon.training()["unsaved_steps"] or 0) > 10)
        os.kill(daemon.training()["trainer_pid"], signal.SIGKILL)
        wait_for(lambda: daemon.training()["trainer_pid"] is None)
        training = daemon.training()
        newest = checkpoints.newest_verified(workspace.current_model)
        assert newest is not None
        assert training["global_step"] == newest.manifest.global_step
        assert training["unsaved_steps"] == 0
        set_stub(workspace, **LONG, load_s=0, stands_at=newest.manifest.global_step + 1)
        wait_for(lambda: daemon.said("training goes on from checkpoint-"))
        last = daemon.get("/v1/metrics?series=loss")["to_step"]
        assert last <= newest.manifest.global_step
    finally:
        set_stub(workspace)
        daemon.close()


def test_a_restore_leaves_no_figure_of_the_model_before(tmp_path) -> None:
    settings = "[versioning]\non_new_best = false\n"
    daemon = Harness(make_workspace(tmp_path / "ws", settings, steps=4)).start()
    try:
        for name in ("a", "b"):
            (daemon.workspace.inbox / f"{name}.jsonl").write_bytes(chat_rows(3, name))
            daemon.until_job(f"{name}.jsonl", "completed")
            if name == "a":
                number = daemon.post("/v1/versions", {"description": "after a"})["number"]
        before = daemon.training()
        assert before["val_loss"] is not None and before["loss"] is not None
        daemon.post("/v1/training/pause")
        daemon.post(f"/v1/versions/{number}/restore", {}, timeout_s=60)
        told = daemon.training()
        assert [told[key] for key in ("loss", "loss_ema", "val_loss", "job")] == [None] * 4
    finally:
        daemon.close()


def test_the_file_in_hand_and_those_begun_before_it_each_have_their_time(tmp_path) -> None:
    """Two were begun when the trainer ended; the next one has taken up the first."""
    workspace = make_workspace(tmp_path / "ws")
    for name in ("first", "second", "third"):
        plant(workspace, f"{name}.jsonl", rows=10)  # 100 tokens each
    queue = Queue(workspace)
    for _ in range(2):
        queue.claim_next(datetime.now(UTC))
    figures = Figures()
    figures.job_id, figures.job_step, figures.job_steps = 1, 5, 10
    figures.step_times, figures.token_rates = deque([1.0]), deque([10.0])
    in_hand_s, pace = eta.job_span(figures), eta.pace(figures)
    begun = Work(100, 0)
    context = Context(
        datetime.now(UTC),
        pace=pace,
        epochs=2,
        in_hand=1,
        in_hand_s=in_hand_s,
        begun_s=eta.and_then(pace, in_hand_s, begun, 2),
    )
    views = job_view.views(queue.jobs(), job_view.Standing(1, 2, Work()), context, lambda job: None)
    ends = [view["eta_s"][1] for view in views]
    assert ends == [5.0, 25.0, 45.0], "half of it; then 200 tokens each, ten a second"
    assert eta.and_then(pace, in_hand_s, Work(100, 1), 2) is None, "one was never counted"
    assert eta.and_then(pace, in_hand_s, Work(), 2) == in_hand_s


def test_an_edit_that_waits_for_approval_is_not_shown_as_in_force(serve) -> None:
    daemon = serve().start()
    before = daemon.get("/v1/config")["values"]["max_length"]
    daemon.call("PATCH", "/v1/config", {"values": {"max_length": 200}})
    if not daemon.get("/v1/config")["pending"]:
        raise AssertionError("it had to wait")
    command = [sys.executable, "-m", "trainer_tui.tui.cli", "-w", str(daemon.workspace.root)]
    for more in ([], ["max_length"]):
        done = subprocess.run([*command, "config", "show", *more], capture_output=True, text=True)
        assert f"max_length = {before}" in done.stdout and "max_length = 200" not in done.stdout
        assert f"pending: max_length {before} -> 200" in done.stdout
