"""The real worker, killed by the kernel at a system call, or told that the disk failed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer_tui.queue.report_context import build
from trainer_tui.queue.staging import Order, stage
from trainer_tui.queue.store import Queue
from trainer_tui.safety import hashing
from trainer_tui.safety.workspace import Workspace

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def take_under_strace(workspace: Workspace, path: Path, inject: str) -> dict[str, Any] | None:
    """The worker's answer, None when it was killed before it could give one."""
    worker = [sys.executable, "-m", "trainer_tui.queue.intake_worker", "--workspace"]
    traced = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", f"inject={inject}"]
    line = json.dumps({"do": "take", "path": str(path)}) + "\n"
    done = subprocess.run(
        [*traced, *worker, str(workspace.root)],
        input=line.encode(),
        capture_output=True,
        check=False,
    )
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    return json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def file(with_model: Workspace, row) -> Path:
    path = with_model.inbox / "a.jsonl"
    path.write_text("\n".join(row(f"{at}?", f"{at}.") for at in range(20)))
    return path


@pytest.mark.parametrize("call", [2, 8])
def test_a_killed_worker_leaves_the_original_and_no_job(
    call: int, with_model: Workspace, file: Path
) -> None:
    sha256 = hashing.hash_file(file)
    assert take_under_strace(with_model, file, f"fsync:signal=SIGKILL:when={call}") is None
    queue = Queue(with_model)
    assert queue.jobs() == [] and not list(with_model.queue.glob(".staging-*"))
    assert hashing.hash_file(file) == sha256
    staged = stage(with_model, Order(file), build(with_model))
    assert queue.admit(staged.folder, "normal").meta.file_sha256 == sha256


def test_a_failed_fsync_is_final_and_said(with_model: Workspace, file: Path) -> None:
    answer = take_under_strace(with_model, file, "fsync:error=EIO:when=2")
    assert answer["class"] == "io_error" and not answer["ok"]
    assert file.exists() and not list(with_model.queue.glob(".staging-*"))
