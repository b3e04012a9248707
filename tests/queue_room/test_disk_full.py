"""A disk without room, or without inodes, at every phase: refused in order, nothing lost.

On a small tmpfs, which needs the right to mount; without it these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainer_tui.daemon.inbox import admit
from trainer_tui.queue.job import JobError
from trainer_tui.queue.originals import recover, remove_original
from trainer_tui.queue.report import Context
from trainer_tui.queue.report_context import load_template
from trainer_tui.queue.staging import Order, stage
from trainer_tui.queue.store import Queue
from trainer_tui.safety import durable, hashing
from trainer_tui.safety.config import Config
from trainer_tui.safety.workspace import QUEUE_FOLDERS, Workspace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLOCK = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace on a filesystem of 400 kB and 120 inodes."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k,nr_inodes=120", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        (mount / "config.toml").touch()
        workspace = Workspace(mount)
        workspace.prepare()
        yield workspace
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill_blocks(root: Path, leave: int) -> Path:
    """Take all room but `leave` blocks."""
    free = os.statvfs(root).f_bavail
    filler = root / "filler"
    filler.write_bytes(bytes(max(0, free - leave) * BLOCK))
    return filler


def fill_inodes(root: Path, leave: int) -> Path:
    folder = root / "fillers"
    folder.mkdir()
    for number in range(os.statvfs(root).f_ffree - leave):
        (folder / str(number)).touch()
    return folder


def clear(filler: Path) -> None:
    if filler.is_dir():
        for file in filler.iterdir():
            file.unlink()
        filler.rmdir()
    else:
        filler.unlink()


def whole_way(workspace: Workspace, context: Context, path: Path) -> None:
    queue = Queue(workspace)
    staged = stage(workspace, Order(path), context)
    job = admit(queue, staged.folder, "normal", again=False, added_by="inbox")
    remove_original(path, job)
    queue.claim_next(NOW)
    queue.fail(job.id, JobError(error_class="data_error", message="no"))
    queue.retry(job.id)
    queue.remove(job.id)
    queue.restore_removed(job.id)


@pytest.mark.parametrize("fill", [fill_blocks, fill_inodes])
def test_a_full_disk_at_any_phase_loses_and_doubles_nothing(
    fill, small: Workspace, model_folder: Path, row
) -> None:
    context = Context(Config(), load_template(model_folder)[0])
    text = "\n".join(row(f"What is {at}?", f"It is {at}.") for at in range(60))
    refused = done = 0
    for leave in range(40):
        path = small.inbox / f"{leave}.jsonl"
        path.write_text(text + "\n" * leave)
        sha256 = hashing.hash_file(path)
        filler = fill(small.root, leave)
        try:
            whole_way(small, context, path)
            done += 1
        except OSError:
            refused += 1
        clear(filler)
        left = list(small.queue.glob(".staging-*"))
        assert not left, "whoever is refused leaves no copy on the full disk"
        queue = Queue(small)
        recover(small, queue.jobs())
        assert not queue.findings and queue.reconcile() == []
        places = [path] if path.exists() else []
        for folder in QUEUE_FOLDERS:
            places += (small.queue / folder).glob("*/data.jsonl")
        trashed = list(small.trash.glob("*/data.jsonl"))
        (place,) = [*places, *trashed]
        assert hashing.hash_file(place) == sha256
        assert not list(small.queue.glob(".staging-*"))
        if trashed:
            queue.restore_removed(queue_id(trashed[0]))
        for job in queue.jobs():
            if job.state == "processing":
                queue.requeue(job.id)
            durable.remove_tree(small.trash / queue.remove(job.id))
        path.unlink(missing_ok=True)
        durable.remove_tree(small.cache)
        small.prepare()
        if done > 2:
            break
    assert refused > 3 and done


def queue_id(trashed: Path) -> int:
    return int(trashed.parent.name.split("-")[1])
