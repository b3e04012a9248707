"""Two rows that end the trainer's process, under the real daemon: its three attempts are enough."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from daemon_harness import SUPPORT, Harness, wait_for

from trainer_tui.safety.workspace import Workspace

ENGINE = Path(__file__).parents[1] / "engine"
POISON = 96  # the token of "~", which no other row has
SPOILT = (17, 43)
SETTINGS = """
tokens_per_step = 256
pack_tokens = 256
max_length = 256
eval_steps = 1000
save_steps = 1000
min_save_interval_s = 300.0
[validation]
rows = 0
holdout_rows = 0
holdout_share = 0.0
"""


def chat(number: int) -> str:
    answer = f"It {'~ ' if number in SPOILT else ''}is {number}."
    turns = [("user", f"What is {number}, {'really ' * (number % 9)}?"), ("assistant", answer)]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})


def test_rows_that_end_the_process_cost_themselves_alone(
    torture: bool, base: Path, tmp_path: Path
) -> None:
    if not torture:
        pytest.skip("takes minutes: back-off and a new process for each death")
    root = tmp_path / "ws"
    root.mkdir()
    (root / "config.toml").write_text(SETTINGS)
    shutil.copytree(base, root / "models" / "base")
    traps = {"kill_token": POISON, "kill_by": int(signal.SIGSEGV)}
    (root / "trap.json").write_text(json.dumps(traps))
    (root / "inbox").mkdir()
    (root / "inbox" / "a.jsonl").write_text("".join(f"{chat(n)}\n" for n in range(1, 61)))
    harness = Harness(Workspace(root), entry="trap")
    harness.start(env={"PYTHONPATH": os.pathsep.join((str(ENGINE), str(SUPPORT)))})
    try:
        done = wait_for(lambda: done_of(harness), 400)
        assert done["state"] == "completed", done
        assert done["trained_rows"] == 60 - len(SPOILT)
        said = [event["text"] for event in harness.said("ends the trainer's process")]
        assert len(said) == len(SPOILT)
    finally:
        harness.close()


def done_of(harness: Harness) -> dict | None:
    job = harness.job("a.jsonl")
    return job if job is not None and job["state"] in ("completed", "failed") else None
