"""A queue of 100,000 files: how long listing, reordering, claiming and opening take, and memory.

`python -m benchmarks.queue_scale [--jobs N] [--folder DIR]`
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from trainer_tui.queue.job import Meta, Source, encode_meta
from trainer_tui.queue.order import position_text
from trainer_tui.queue.store import Queue
from trainer_tui.safety.workspace import Workspace

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fill(workspace: Workspace, jobs: int) -> None:
    for number in range(jobs):
        folder = workspace.queue / "normal" / f"{position_text(number << 20)}-{number + 1}-a.jsonl"
        folder.mkdir()
        meta = Meta(
            id=number + 1,
            original_name=f"file number {number}.jsonl",
            source=Source(1, number, 1000, 10**18 + number),
            file_sha256=f"{number:064x}",
            bytes=1000,
            rows=10,
            kept_rows=10,
            tokens=1000,
            supervised_tokens=500,
            verdict="ok",
            summary="ok",
            added_at="2026-11-24T12:00:00.000Z",
            added_by="inbox",
        )
        (folder / "meta.json").write_bytes(encode_meta(meta))


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(label: str, act):
    start = time.perf_counter()
    found = act()
    print(f"{label:32} {(time.perf_counter() - start) * 1000:10.1f} ms   {memory_mb():6.0f} MB")
    return found


def stage(workspace: Workspace) -> Path:
    folder = workspace.queue / ".staging-bench"
    folder.mkdir()
    (folder / "data.jsonl").write_text("x")
    meta = Meta(original_name="urgent.jsonl", file_sha256="f" * 64, verdict="ok")
    (folder / "meta.json").write_bytes(encode_meta(meta))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to make it; a temporary one without it")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        measure(root, asked.jobs)
    finally:
        shutil.rmtree(root)
    return 0


def measure(root: Path, jobs: int) -> None:
    workspace = Workspace(root)
    workspace.prepare()
    timed(f"write {jobs:,} jobs", lambda: fill(workspace, jobs))
    queue = timed("open the queue", lambda: Queue(workspace))
    timed("list all", queue.jobs)
    timed("move the last to the top", lambda: queue.move(jobs, place="top"))
    timed("move into the middle", lambda: queue.move(jobs - 1, before=jobs // 2))
    for turn in range(30):  # the same spot until it has no room left
        queue.move(jobs - 2 - turn, before=jobs // 3)
    timed("move where there is no room", lambda: queue.move(jobs - 40, before=jobs // 3))
    timed("change a priority", lambda: queue.set_priority(jobs // 2, "low"))
    timed("place of one", lambda: queue.place(jobs // 2 + 1))
    staged = stage(workspace)
    urgent = timed("admit one with high priority", lambda: queue.admit(staged, "high"))
    claimed = timed("claim the next", lambda: queue.claim_next(NOW))
    assert claimed.id == urgent.id
    timed("complete it", lambda: queue.complete(claimed.id))
    timed("reconcile with the disk", queue.reconcile)


if __name__ == "__main__":
    raise SystemExit(main())
