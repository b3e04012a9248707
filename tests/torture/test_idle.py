"""What the daemon costs while nothing happens: below 1 % of a core and 120 MB, also with a
thousand files waiting, before and after its trainer has gone for idleness.
"""

from __future__ import annotations

import json
import os
import time

import psutil
import pytest
from daemon_harness import Harness, chat_rows, make_workspace, plant, wait_for

CPU_PERCENT, MEMORY_BYTES = 1.0, 120_000_000


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@pytest.mark.parametrize("jobs", [0, 1000])
@pytest.mark.parametrize("after_training", [False, True])
def test_an_idle_daemon_costs_next_to_nothing(tmp_path, torture, jobs, after_training):
    """`TORTURE_IDLE_S` seconds (default 60) are measured."""
    if not torture:
        pytest.skip("minutes long: make torture")
    settings = "[supervision]\nidle_exit_s = 1.0\n"
    workspace = make_workspace(tmp_path / "ws", settings, steps=2, step_s=0.0)
    for number in range(jobs):
        plant(workspace, f"{number}.jsonl")
    if jobs:
        paused = {"training": "pause", "by": "", "at": "", "why": ""}
        workspace.intent_file.write_text(json.dumps(paused))
    daemon = Harness(workspace).start()
    try:
        if after_training and jobs:
            daemon.post("/v1/training/resume", timeout_s=60)
            wait_for(lambda: daemon.training()["global_step"], 60, "it trains")
            daemon.post("/v1/training/stop", {"now": True}, timeout_s=60)
        elif after_training:
            (workspace.inbox / "x.jsonl").write_bytes(chat_rows(3))
            daemon.until_job("x.jsonl", "completed", 60)
            wait_for(lambda: daemon.training()["trainer_pid"] is None, 60, "the trainer goes")
        process = psutil.Process(daemon.process.pid)
        before_s, started_s = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(float(os.environ.get("TORTURE_IDLE_S", "60")))  # what is measured
        spent_s = sum(process.cpu_times()[:2]) - before_s
        percent = 100 * spent_s / (time.monotonic() - started_s)
        resident = process.memory_info().rss
        print(f"{jobs} jobs, {after_training=}: {percent:.2f} %, {resident / 1e6:.0f} MB")
        assert percent < CPU_PERCENT and resident < MEMORY_BYTES
    finally:
        daemon.close()
