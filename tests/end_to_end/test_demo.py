"""The demo without a terminal: a shorter one, but the same way from nothing to a better model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from daemon_harness import wait_for
from person import COMMAND

from trainer_tui.safety import processes

pytestmark = pytest.mark.end_to_end


@pytest.mark.timeout(900)
def test_the_demo_learns_although_its_trainer_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    command = [COMMAND, "demo", "--headless", "--dir", str(root), "--rows", "300"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        saved = root / "models" / "current_model"
        wait_for(lambda: running.poll() is not None or list(saved.glob("checkpoint-*")), 400)
        tag = processes.workspace_tag(root)
        trainer = next(
            process
            for process in processes.tagged(tag)
            if b"spawn_main" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
            and b"intake" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        )
        processes.send(trainer, signal.SIGKILL)
        said, _ = running.communicate(timeout=400)
    finally:
        running.kill()
    assert running.returncode == 0, said
    assert "5 trained, 0 failed" in said
    first, last = map(float, re.search(r"  loss\s+([\d.]+) -> ([\d.]+)", said).groups())
    assert last < first / 2
    base, after = map(float, re.search(r"exact match ([\d.]+) \(base\) -> ([\d.]+)", said).groups())
    assert after > base
    assert not processes.tagged(tag)


def test_a_second_demo_never_removes_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years of work")
    done = subprocess.run(
        [COMMAND, "demo", "--headless", "--dir", str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ.copy(),
    )  # fmt: skip
    assert done.returncode == 1
    assert (tmp_path / "thesis.txt").read_text() == "five years of work"
