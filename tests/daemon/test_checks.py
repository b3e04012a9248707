"""A report that was made against something else is made again before its job may start."""

from __future__ import annotations

import json
import shutil

import pytest
from daemon_harness import Harness, make_workspace, wait_for

from trainer_tui.data import toy_chats, toy_tokenizer
from trainer_tui.queue import check
from trainer_tui.safety import durable


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer.build(folder, toy_chats.generate(rows_per_file=60).texts())
    return folder


@pytest.fixture
def paused(tmp_path):
    harness = Harness(make_workspace(tmp_path / "ws")).start()
    harness.post("/v1/training/pause")
    yield harness
    harness.close()


def rows(count: int, words: int, seed: str) -> bytes:
    """Rows of about so many words, and a short one; none is like another."""
    found = (
        {
            "messages": [
                {"role": "user", "content": f"{seed} {i}"},
                {"role": "assistant", "content": " ".join(["word"] * (words if i else 3))},
            ]
        }
        for i in range(count + 1)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in found)


def give_model(harness: Harness, tokenizer) -> None:
    base = harness.workspace.root / "models" / "base"
    for path in tokenizer.iterdir():
        shutil.copy(path, base / path.name)


def approve(harness: Harness) -> None:
    answer = harness.call("PATCH", "/v1/config", {"approve": ["max_length"]})
    assert answer.status == 200, answer


def drop(harness: Harness, name: str, data: bytes, state: str = "waiting"):
    path = harness.workspace.inbox / f"{name}.part"
    path.write_bytes(data)
    path.rename(path.with_suffix(".jsonl"))
    return harness.until_job(f"{name}.jsonl", state)


def test_a_file_that_came_before_the_model_is_checked_before_it_is_trained(paused, tokenizer):
    good = drop(paused, "good", rows(5, 3, "good"))
    long = drop(paused, "long", rows(5, 5000, "long"))
    assert (good["verdict"], good["tokens"]) == ("unchecked", 0)
    assert long["verdict"] == "unchecked"
    give_model(paused, tokenizer)
    paused.post("/v1/training/resume")
    failed = paused.until_job("long.jsonl", "failed", 60)
    assert "max_length" in failed["error"]["message"]
    assert "--accept" in failed["error"]["hint"]
    done = paused.until_job("good.jsonl", "completed", 60)
    assert done["verdict"] == "ok"
    assert done["tokens"] > 0
    report = paused.get(f"/v1/jobs/{done['id']}/report")
    assert report["supervised_tokens"] == done["supervised_tokens"] > 0
    started = [event["text"] for event in paused.said("long.jsonl")]
    assert not [text for text in started if "is done" in text]


def test_a_blocked_file_is_let_through_once_the_setting_it_names_has_changed(paused, tokenizer):
    give_model(paused, tokenizer)
    job = drop(paused, "long", rows(5, 300, "long"))
    assert job["verdict"] == "ok"
    blocked = drop(paused, "longer", rows(5, 5000, "longer"), "failed")
    where = f"/v1/jobs/{blocked['id']}/retry"
    refused = paused.call("POST", where)
    assert refused.status == 409
    assert "--accept" in refused.json["hint"]
    changed = {"max_length": 65536, "pack_tokens": 65536}
    answer = paused.call("PATCH", "/v1/config", {"values": changed})
    assert answer.status == 200, answer
    still = paused.call("POST", where)  # it waits for an approval: nothing is different yet
    assert still.status == 409
    approve(paused)
    paused.post(where)
    again = wait_for(
        lambda: (found := paused.job("longer.jsonl")) and found["verdict"] == "ok" and found,
        60,
        "it was checked again",
    )
    assert again["state"] == "waiting"


def test_a_stricter_setting_stops_files_that_wait_and_leaves_accepted_ones(paused, tokenizer):
    give_model(paused, tokenizer)
    plain = drop(paused, "plain", rows(5, 300, "plain"))
    kept = drop(paused, "kept", rows(5, 5000, "kept"), "failed")
    paused.post(f"/v1/jobs/{kept['id']}/retry", {"accept": True})
    assert plain["verdict"] == "ok"
    paused.call("PATCH", "/v1/config", {"values": {"max_length": 128}})
    approve(paused)
    failed = paused.until_job("plain.jsonl", "failed", 60)
    assert "max_length 128" in failed["error"]["message"]
    wait_for(
        lambda: "max_length 128" in paused.job("kept.jsonl")["summary"], 60, "it was looked at too"
    )
    assert paused.job("kept.jsonl")["state"] == "waiting"


BAD_SECTOR = """
from trainer_tui.daemon import checks, intake_worker
intake_worker.MODULE = "dying_worker"
checks._TRY_AGAIN_S["io_error"] = 0.2
"""


def test_a_file_on_a_bad_sector_is_set_aside_and_those_behind_it_are_trained(tmp_path, tokenizer):
    harness = Harness(make_workspace(tmp_path / "ws"))
    harness.prelude = BAD_SECTOR
    harness.start()
    try:
        harness.post("/v1/training/pause")
        sick = drop(harness, "sick", rows(5, 3, "sick"))
        drop(harness, "well", rows(5, 3, "well"))
        give_model(harness, tokenizer)
        harness.post("/v1/training/resume")
        assert harness.until_job("well.jsonl", "completed", 60)["verdict"] == "ok"
        error = harness.until_job("sick.jsonl", "failed")["error"]
        assert "Input/output error" in error["message"] and error["retryable"]
        assert f"queue retry {sick['id']}" in error["hint"] and error["class"] == "io_error"
        assert len(harness.said("sick.jsonl could not be checked again")) == 1
        retried = harness.post(f"/v1/jobs/{sick['id']}/retry")
        assert retried["state"] == "waiting"
    finally:
        harness.close()


def test_a_check_cut_short_anywhere_is_made_again_and_nothing_blocked_starts(
    paused, tokenizer, monkeypatch
):
    """The process ends before each durable operation of taking a new report over."""
    from datetime import UTC, datetime

    from trainer_tui.queue import report_context
    from trainer_tui.queue.staging import Memory
    from trainer_tui.queue.staging import check as make_again
    from trainer_tui.queue.store import Queue

    drop(paused, "long", rows(5, 5000, "long"))
    assert paused.stop() == 0
    give_model(paused, tokenizer)
    workspace = paused.workspace
    context = report_context.build(workspace)
    saved = workspace.root.parent / "saved"
    shutil.copytree(workspace.queue, saved)

    class Killed(BaseException):
        pass

    died = 0
    for number in range(100):
        shutil.rmtree(workspace.queue)
        shutil.copytree(saved, workspace.queue)
        queue = Queue(workspace)
        (job,) = queue.waiting()
        staged = make_again(workspace, queue.path(job), context, Memory(workspace))
        count = 0

        def die(operation, path, number=number):
            nonlocal count
            if count == number:
                raise Killed
            count += 1

        try:
            with durable.observed(die):
                queue.take_report(job.id, staged.folder)
        except Killed:
            died += 1
        queue = Queue(workspace)  # what the next daemon finds
        job = queue.get(job.id)
        assert queue.path(job).joinpath("data.jsonl").exists()
        if job.state == "waiting":
            assert check.is_outdated(job.meta, context.key)
            staged = make_again(workspace, queue.path(job), context, Memory(workspace))
            job = queue.take_report(job.id, staged.folder)
        assert job.state == "failed"
        assert queue.error(job).error_class == "blocked"
        assert queue.claim_next(datetime.now(UTC)) is None
        if count < number:
            break
    assert died > 5
