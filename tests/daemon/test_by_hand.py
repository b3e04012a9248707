"""What a person does to the queue's folders while the daemon runs: taken over, and explained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, plant, wait_for

from trainer_tui.daemon import upkeep
from trainer_tui.safety import durable

QUICK = "from trainer_tui.daemon import upkeep; upkeep.RECONCILE_EVERY_S = 0.3"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Harness]:
    workspace = make_workspace(tmp_path / "ws")
    for name in ("stays.jsonl", "moves.jsonl", "goes.jsonl", "fails.jsonl"):
        plant(workspace, name)
    harness = Harness(workspace)
    harness.prelude = QUICK
    harness.start()
    harness.post("/v1/training/pause")
    yield harness
    harness.close()


def folder_of(daemon: Harness, name: str) -> Path:
    (found,) = daemon.workspace.queue.glob(f"*/*-{name}")
    return found


def until_said(daemon: Harness, *words: str) -> str:
    def there() -> str | None:
        texts = [event["text"] for event in daemon.said(words[0])]
        return next((text for text in texts if all(word in text for word in words)), None)

    return wait_for(there, 30, f"an event that says {words}") or ""


def test_the_daemon_looks_at_least_every_30_seconds() -> None:
    assert upkeep.RECONCILE_EVERY_S <= 30


def test_folders_moved_between_states_are_jobs_there_and_it_is_said(daemon: Harness) -> None:
    queue = daemon.workspace.queue
    moved = folder_of(daemon, "moves.jsonl")
    moved.rename(queue / "high" / moved.name)
    until_said(daemon, "moves.jsonl", "moved by hand from normal to high")
    assert daemon.jobs()[0]["name"] == "moves.jsonl"

    aside = folder_of(daemon, "fails.jsonl")
    aside.rename(queue / "failed" / aside.name)
    until_said(daemon, "fails.jsonl", "moved by hand from normal to failed")
    assert daemon.job("fails.jsonl")["state"] == "failed"
    back = folder_of(daemon, "fails.jsonl")
    back.rename(queue / "low" / back.name)
    until_said(daemon, "fails.jsonl", "moved by hand from failed to low")
    assert daemon.jobs()[-1]["name"] == "fails.jsonl"

    shutil.rmtree(folder_of(daemon, "goes.jsonl"))
    until_said(daemon, "goes.jsonl", "deleted by hand from normal")
    assert daemon.job("goes.jsonl") is None
    daemon.post("/v1/training/resume")  # what was moved trains like any other
    for name in ("moves.jsonl", "stays.jsonl", "fails.jsonl"):
        daemon.until_job(name, "completed")


def test_a_failed_job_moved_into_the_inbox_is_explained_and_its_data_taken_as_a_new_file(
    daemon: Harness,
) -> None:
    inbox, queue = daemon.workspace.inbox, daemon.workspace.queue
    job = daemon.job("fails.jsonl")
    failed = folder_of(daemon, "fails.jsonl")
    failed.rename(queue / "failed" / failed.name)
    until_said(daemon, "fails.jsonl", "normal to failed")

    folder = folder_of(daemon, "fails.jsonl")
    folder.rename(inbox / folder.name)
    until_said(daemon, "fails.jsonl", "deleted by hand from failed")
    until_said(daemon, f"is the folder of job {job['id']}", "state/queue/normal")
    assert (inbox / folder.name / "data.jsonl").exists(), "it is left alone"

    (inbox / folder.name).rename(queue / "normal" / folder.name)  # as it was told
    until_said(daemon, "fails.jsonl", "appeared in normal")
    assert daemon.job("fails.jsonl")["id"] == job["id"]

    other = inbox / "other.jsonl"
    other.write_bytes(chat_rows(2, "other"))
    new = daemon.until_job("other.jsonl", "waiting")
    source = folder_of(daemon, "other.jsonl") / "data.jsonl"
    source.rename(inbox / "again.jsonl")  # the data alone; its content is job `new` already
    again = daemon.until_job("again.jsonl", "failed")
    assert f"job {new['id']}" in again["error"]["message"]
    wait_for(lambda: not (inbox / "again.jsonl").exists(), why="the original goes last")


def test_data_edited_in_processing_is_found_by_its_hash(daemon: Harness) -> None:
    daemon.post("/v1/training/resume")
    for name in ("stays.jsonl", "moves.jsonl", "goes.jsonl", "fails.jsonl"):
        daemon.until_job(name, "completed")
    daemon.post("/v1/training/pause")
    (daemon.workspace.inbox / "edited.jsonl").write_bytes(chat_rows(2, "edited"))
    daemon.until_job("edited.jsonl", "waiting")
    folder = folder_of(daemon, "edited.jsonl")
    data = folder / "data.jsonl"
    times = data.stat()
    folder.rename(daemon.workspace.queue / "processing" / folder.name)
    until_said(daemon, "edited.jsonl", "moved by hand from normal to processing")
    processing = folder_of(daemon, "edited.jsonl")
    assert processing.parent.name == "processing"
    other = chat_rows(2, "edi+ed")  # the same length, and the old times
    assert len(other) == times.st_size
    durable.replace(processing / "data.jsonl", other, 0o400)
    os.utime(processing / "data.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    until_said(daemon, "edited.jsonl", "was changed after it was queued")
