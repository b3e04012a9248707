"""What the queue promises beyond the state machine: stale requests, races, hands in its folders."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trainer_tui.queue import scan
from trainer_tui.queue.job import JobError, Meta, encode_meta
from trainer_tui.queue.order import position_text
from trainer_tui.queue.store import Duplicate, Queue
from trainer_tui.queue.upkeep import expired
from trainer_tui.queue.waiting import coming_time, why_waiting
from trainer_tui.safety import quiet_hours
from trainer_tui.safety.config import Retention
from trainer_tui.safety.errors import NotFound, Refused, Stale
from trainer_tui.safety.workspace import QUEUE_FOLDERS, Workspace

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def filled(queue: Queue, stage) -> Queue:
    for number in range(5):
        queue.admit(stage(queue.workspace, f"f{number}"), "normal")
    return queue


def names(queue: Queue) -> list[str]:
    return [job.name for job in queue.waiting()]


def test_a_high_arrival_is_next(filled: Queue, stage) -> None:
    filled.admit(stage(filled.workspace, "urgent"), "high")
    assert filled.claim_next(NOW).name == "urgent"


def test_priority_changes_keep_their_place_in_time(queue: Queue, stage) -> None:
    for number, priority in enumerate(("normal", "high", "normal", "high")):
        queue.admit(stage(queue.workspace, f"f{number}"), priority)
    queue.set_priority(3, "high")
    assert names(queue) == ["f1", "f2", "f3", "f0"]


def test_the_same_content_is_refused_unless_asked_for(filled: Queue, stage) -> None:
    staged = stage(filled.workspace, "other name", "content of f2")
    with pytest.raises(Duplicate, match="job 3"):
        filled.admit(staged, "normal")
    assert filled.admit(staged, "normal", again=True).id == 6


def test_a_removed_job_whose_content_was_added_again_does_not_come_back_beside_it(
    filled: Queue, stage
) -> None:
    gone = filled.remove(3)
    again = filled.admit(stage(filled.workspace, "f2"), "normal")
    for queue in (filled, Queue(filled.workspace)):
        with pytest.raises(Refused, match="added again as job 6") as refused:
            queue.restore_removed(gone)
        assert "queue show 6" in refused.value.hint
    assert names(filled) == ["f0", "f1", "f3", "f4", "f2"]
    filled.remove(again.id)
    assert filled.restore_removed(gone).id == 3, "it is the only one now"


def test_a_removed_job_comes_back_beside_one_that_was_wanted_too(filled: Queue, stage) -> None:
    copy = filled.admit(stage(filled.workspace, "more", "content of f2"), "normal", again=True)
    for job_id in (3, copy.id):
        assert filled.restore_removed(filled.remove(job_id)).state == "waiting"
    assert len(names(filled)) == 6


def test_a_content_is_known_long_after_its_job_has_gone(filled: Queue, stage) -> None:
    job = filled.claim_next(NOW)
    filled.complete(job.id)
    shutil.rmtree(filled.workspace.trash / filled.remove(job.id))
    again = Queue(filled.workspace)
    with pytest.raises(Duplicate, match=f"job {job.id}"):
        again.admit(stage(filled.workspace, "x", "content of f0"), "normal")
    assert again.admit(stage(filled.workspace, "new"), "normal").id == 6


def test_a_removed_job_may_come_again(filled: Queue, stage) -> None:
    filled.remove(2)
    assert filled.admit(stage(filled.workspace, "x", "content of f1"), "normal").id == 6


def test_a_stale_request_is_refused_with_the_state_now(filled: Queue) -> None:
    seen = filled.revision
    filled.move(2, place="bottom")
    with pytest.raises(Stale) as refused:
        filled.move(2, place="top", if_revision=seen)
    assert refused.value.current.id == 2
    with pytest.raises(Stale):
        filled.move(3, before=2, if_revision=seen)
    filled.move(3, place="bottom", if_revision=seen)  # untouched since: not stale
    claimed = filled.claim_next(NOW)
    with pytest.raises(Stale, match="is processing now"):
        filled.set_priority(claimed.id, "high", if_revision=seen)


def test_eight_racing_clients_end_in_a_linearizable_result(filled: Queue) -> None:
    """Each moves by compare-and-set until it wins. The winners, replayed one after the other in
    the order of their changes on a plain list, must give the order that is on disk."""
    log: list[tuple[int, int]] = []
    lost: list[int] = []
    start = threading.Barrier(8)

    def client(seed: int) -> None:
        start.wait()
        for turn in range(12):
            job, other = (seed + turn) % 5 + 1, (seed * 3 + turn * 7 + 1) % 5 + 1
            while True:
                seen = filled.revision
                time.sleep(0.0001)  # let others in between looking and acting
                try:
                    with filled._lock:  # so that the log is in the order of the changes
                        filled.move(job, before=other, if_revision=seen)
                        log.append((job, other))
                    break
                except Stale:
                    lost.append(seed)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    order = [1, 2, 3, 4, 5]
    for job, other in log:
        if job != other:
            order.remove(job)
            order.insert(order.index(other), job)
    assert len(log) == 96 and lost
    assert [job.id for job in filled.waiting()] == order
    assert names(Queue(filled.workspace)) == names(filled)


def test_attempts_count_until_progress(filled: Queue) -> None:
    job = filled.claim_next(NOW)
    assert job.attempts_without_progress == 1
    filled.end_attempt(job.id, "crashed", "cuda")
    assert filled.begin_attempt(job.id).attempts_without_progress == 2
    assert filled.end_attempt(job.id, "progress").attempts_without_progress == 0
    filled.begin_attempt(job.id)
    assert filled.end_attempt(job.id, "interrupted").attempts_without_progress == 0
    assert [attempt.result for attempt in filled.get(job.id).meta.attempts] == [
        "crashed",
        "progress",
        "interrupted",
    ]


def test_a_blocked_job_is_retried_only_when_accepted(queue: Queue, stage) -> None:
    staged = stage(queue.workspace, "odd")
    meta = json.loads((staged / "meta.json").read_bytes()) | {"verdict": "block", "summary": "odd"}
    (staged / "meta.json").write_text(json.dumps(meta))
    error = {"class": "blocked", "message": "odd", "hint": "trainer-tui queue retry ID --accept"}
    (staged / "error.json").write_text(json.dumps(error))
    job = queue.admit(staged, "high")
    assert (
        job.state == "failed"
        and queue.error(job).hint == f"trainer-tui queue retry {job.id} --accept"
    )
    with pytest.raises(Refused, match="is blocked: odd"):
        queue.retry(job.id)
    retried = queue.retry(job.id, accept=True)
    assert (retried.state, retried.priority, retried.meta.accepted) == ("waiting", "high", True)
    queue.fail(job.id, JobError(error_class="cuda", message="no"))
    assert queue.retry(job.id).state == "waiting"  # accepted once is accepted


def test_held_scheduled_and_quiet_jobs_wait_and_say_why(filled: Queue) -> None:
    filled.hold(1)
    filled.set_not_before(2, (NOW + timedelta(hours=1)).isoformat())
    assert filled.claim_next(NOW).name == "f2"
    assert filled.claim_next(NOW + timedelta(hours=2)).name == "f1"
    quiet = quiet_hours.parse("00:00-24:00".replace("24:00", "23:59"))
    local_noon = datetime(2026, 6, 1, 12, 0).astimezone()
    assert filled.claim_next(local_noon, quiet) is None
    whys = [why_waiting(job, 2, local_noon, None) for job in filled.waiting()]
    assert whys[0].startswith("held") and whys[1] == "2 files are ahead"
    assert why_waiting(filled.get(4), 0, local_noon, quiet) == "quiet hours until 23:59"
    assert why_waiting(filled.get(4), 0, local_noon, None, "training is paused") == (
        "training is paused"
    )
    assert filled.unhold(1).meta.held is False
    with pytest.raises(Refused, match="not a time"):
        filled.set_not_before(4, "soon")


def test_a_time_of_day_is_the_next_one_that_comes() -> None:
    now = datetime(2026, 1, 1, 12, 30).astimezone()
    assert coming_time("22:00", now) == now.replace(hour=22, minute=0)
    assert coming_time(" 9:05 ", now) == now.replace(day=2, hour=9, minute=5)
    assert coming_time("12:30", now) == now.replace(day=2)
    assert coming_time("2026-11-24T22:00", now).isoformat().startswith("2026-11-24T22:00:00")
    for text in ("24:00", "22", "22:60", "soon", ""):
        with pytest.raises(ValueError, match="Invalid"):
            coming_time(text, now)


@pytest.mark.parametrize(
    "text", ["22", "25:00-06:00", "22:00", "22:00-06:00-07:00", "a-b", "6:00-06:00"]
)
def test_other_texts_are_no_quiet_hours(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no span of time|never holds"):
        quiet_hours.parse(text)


def test_quiet_hours_may_span_midnight() -> None:
    quiet = quiet_hours.parse(" 22:30-06:00 ")
    inside = [(22, 30), (23, 59), (0, 0), (5, 59)]
    outside = [(22, 29), (6, 0), (12, 0)]
    assert all(quiet.holds_at(datetime(2026, 1, 1, *at)) for at in inside)
    assert not any(quiet.holds_at(datetime(2026, 1, 1, *at)) for at in outside)
    assert quiet_hours.parse("") is None


@pytest.mark.parametrize("text", ["8:00-17:00", "08:00\u201317:00", "8:00 \u2014 17:00"])
def test_quiet_hours_are_read_as_people_write_them(text: str) -> None:
    assert quiet_hours.parse(text) == quiet_hours.QuietHours(8 * 60, 17 * 60)


# --- hands in the folders -------------------------------------------------------------------------


def test_what_a_person_does_by_hand_is_noticed_and_explained(filled: Queue, stage) -> None:
    folder = filled.folder
    shutil.move(filled.path(filled.get(1)), folder / "high")
    shutil.rmtree(filled.path(filled.get(2)))
    third = filled.path(filled.get(3))
    third.rename(third.with_name(f"{position_text(-5)}-3-f2"))
    (folder / "normal" / "notes.txt").write_text("x")
    (folder / "normal" / "my folder").mkdir()
    shutil.copytree(filled.path(filled.get(4)), folder / "low" / filled.path(filled.get(4)).name)
    found = sorted((finding.kind, finding.job_id) for finding in filled.reconcile())
    assert found == [
        ("foreign", 0),
        ("foreign", 0),
        ("moved", 1),
        ("moved", 3),
        ("twice", 4),
        ("vanished", 2),
    ]
    assert names(filled) == ["f0", "f2", "f3", "f4"]
    assert filled.reconcile() == []  # said once
    shutil.rmtree(folder / "low" / filled.path(filled.get(4)).name)
    assert filled.reconcile() == []
    assert filled.claim_next(NOW).name == "f0"


def test_folders_that_nobody_touched_are_not_read_again(
    filled: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled.folder / "low" / "my folder").mkdir()
    for folder in QUEUE_FOLDERS:  # the last change was long enough ago to be told from another
        os.utime(filled.folder / folder, (NOW.timestamp(), NOW.timestamp()))
    assert [finding.kind for finding in filled.reconcile()] == ["foreign"]
    with monkeypatch.context() as patched:
        patched.setattr(scan, "directories", None)
        assert filled.reconcile() == []
    shutil.rmtree(filled.path(filled.get(2)))
    assert [finding.kind for finding in filled.reconcile()] == ["vanished"]


def test_an_act_on_a_job_that_was_deleted_by_hand_is_refused(filled: Queue) -> None:
    shutil.rmtree(filled.path(filled.get(2)))
    with pytest.raises(Stale, match="deleted it by hand"):
        filled.move(2, place="bottom")
    with pytest.raises(NotFound):
        filled.get(2)


def test_damaged_meta_is_rebuilt_and_said(filled: Queue) -> None:
    (filled.path(filled.get(1)) / "meta.json").write_text("{")
    (filled.path(filled.get(2)) / "meta.json").unlink()
    again = Queue(filled.workspace)
    assert sorted(finding.job_id for finding in again.findings) == [1, 2]
    assert {finding.kind for finding in again.findings} == {"damaged"}
    assert names(again) == ["f0", "f1", "f2", "f3", "f4"]
    assert again.get(1).meta.file_sha256 == filled.get(1).meta.file_sha256


def test_an_edited_file_in_processing_is_detected(filled: Queue) -> None:
    job = filled.claim_next(NOW)
    data = filled.path(job) / "data.jsonl"
    assert filled.reconcile() == []
    data.chmod(0o600)
    data.write_bytes(b"x" * data.stat().st_size)
    found = filled.reconcile()
    assert [finding.kind for finding in found] == ["edited"]
    data.unlink()
    assert [finding.kind for finding in filled.reconcile()] == ["damaged"]


def test_old_and_too_many_finished_jobs_go_to_the_trash(filled: Queue) -> None:
    for _ in range(4):
        job = filled.claim_next(NOW)
        finished = NOW - timedelta(days=40 if job.id == 1 else 1)
        filled.complete(job.id, finished_at=finished.isoformat())
    retention = Retention(completed_jobs=2, completed_days=30)
    assert [job.id for job in expired(filled.jobs(), retention, NOW)] == [2, 1]
    gone = filled.expire(retention, NOW)
    assert all((filled.workspace.trash / name / "data.jsonl").is_file() for name in gone)
    assert filled.restore_removed(gone[0]).state == "completed"


def test_done_jobs_are_also_kept_by_their_size_and_the_newest_whatever_it_is(
    filled: Queue,
) -> None:
    for job in list(filled.waiting())[:3]:
        filled.complete(job.id, finished_at=(NOW + timedelta(minutes=job.id)).isoformat())
    size = filled.get(1).meta.bytes
    one, two = size * 1.5e-9, size * 2.5e-9
    now = NOW + timedelta(hours=1)
    assert [job.id for job in expired(filled.jobs(), Retention(completed_gb=two), now)] == [1]
    assert [job.id for job in expired(filled.jobs(), Retention(completed_gb=one), now)] == [2, 1]
    tiny = Retention(completed_gb=1e-12)
    assert [job.id for job in expired(filled.jobs(), tiny, now)] == [2, 1]


def test_ids_are_never_used_twice(filled: Queue, stage) -> None:
    shutil.rmtree(filled.workspace.trash / filled.remove(5))
    again = Queue(filled.workspace)
    assert again.admit(stage(filled.workspace, "x"), "low").id == 6


def test_a_hundred_thousand_jobs_are_listed_moved_and_claimed_in_a_second(tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"queue-{os.getpid()}"
    root = memory if Path("/dev/shm").is_dir() else tmp_path
    count = 20_000  # a fifth, to keep the suite quick; benchmarks/queue_scale.py does it all
    try:
        workspace = Workspace(root)
        workspace.prepare()
        meta = encode_meta(Meta(original_name="a", kept_rows=1, rows=1, tokens=100, verdict="ok"))
        for number in range(count):
            job = workspace.queue / "normal" / f"{position_text(number << 20)}-{number + 1}-a"
            job.mkdir()
            (job / "meta.json").write_bytes(meta)
        queue = Queue(workspace)
        for act in (
            queue.jobs,
            lambda: queue.move(count, place="top"),
            lambda: queue.move(count // 2, before=3),
            lambda: queue.set_priority(7, "high"),
            lambda: queue.claim_next(NOW),
            queue.reconcile,
        ):
            start = time.process_time()
            act()
            assert time.process_time() - start < 0.5
    finally:
        shutil.rmtree(memory, ignore_errors=True)
