"""Files dropped into the inbox, good and bad: taken when their writer is done, none unsaid."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, wait_for


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Harness]:
    workspace = make_workspace(tmp_path_factory.mktemp("inbox") / "ws")
    harness = Harness(workspace).start()
    harness.post("/v1/training/pause")
    yield harness
    harness.close()


def test_dropped_files_are_taken_by_the_priority_of_their_folder(daemon):
    inbox = daemon.workspace.inbox
    started = time.monotonic()
    for folder, name in (("low", "c"), ("", "b"), ("high", "a")):
        (inbox / folder / f"{name}.jsonl").write_bytes(chat_rows(2, name))
    wait_for(lambda: daemon.status()["queue"]["waiting"] == 3)
    assert time.monotonic() - started < 10  # 3 s on a machine that does nothing else
    waiting = [job["name"] for job in daemon.jobs() if job["state"] == "waiting"]
    assert waiting == ["a.jsonl", "b.jsonl", "c.jsonl"]
    wait_for(lambda: not list(inbox.rglob("*.jsonl")), why="the originals are gone")


def test_a_file_is_not_taken_while_it_is_written(daemon):
    path = daemon.workspace.inbox / "slow.jsonl"
    rows = chat_rows(4, "slow").splitlines(keepends=True)
    with path.open("wb") as stream:
        stream.write(rows[0])
        stream.flush()
        probe = daemon.workspace.inbox / "probe.jsonl"
        probe.write_bytes(chat_rows(1, "probe"))
        daemon.until_job("probe.jsonl", "waiting")  # the inbox was looked at meanwhile
        time.sleep(1.5)  # longer than a file has to look the same
        assert daemon.job("slow.jsonl") is None
        stream.writelines(rows[1:])
    job = daemon.until_job("slow.jsonl", "waiting")
    assert job["rows"] == 4


GOOD = chat_rows(1)
BAD = {
    "empty.jsonl": (b"", "empty"),
    "not_json.jsonl": (b"this is no JSON\n", "JSON"),
    "not_utf8.jsonl": (b"\xff\xfe\x00garbage\n" * 3, ""),
    "no_messages.jsonl": (b'{"text": "hello"}\n', "messages"),
    "wrong_role.jsonl": (
        json.dumps({"messages": [{"role": "robot", "content": "x"}]}).encode() + b"\n",
        "role",
    ),
    "no_assistant.jsonl": (
        json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode() + b"\n",
        "assistant",
    ),
}


def test_bad_files_end_as_failed_jobs_with_a_sentence_and_good_rows_survive(daemon):
    inbox = daemon.workspace.inbox
    for name, (data, _) in BAD.items():
        (inbox / name).write_bytes(data)
    (inbox / "mixed.jsonl").write_bytes(chat_rows(300, "mixed") + b"broken\n")
    for name, (_, word) in BAD.items():
        job = daemon.until_job(name, "failed")
        assert job["error"]["message"], name
        assert "Traceback" not in job["error"]["message"]
        assert word in json.dumps([job["error"], daemon.get(f"/v1/jobs/{job['id']}/report")])
    job = daemon.until_job("mixed.jsonl", "waiting")
    assert (job["rows"], job["rejected_rows"]) == (301, 1)


def test_folders_links_and_pipes_are_left_alone_and_said_once(daemon, tmp_path):
    inbox = daemon.workspace.inbox
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(GOOD)
    (inbox / "folder.jsonl").mkdir()
    (inbox / "link.jsonl").symlink_to(secret)
    os.mkfifo(inbox / "pipe.jsonl")
    for word in ("folder.jsonl is a folder", "link.jsonl is a symbolic link", "pipe.jsonl is not"):
        wait_for(lambda word=word: daemon.said(word))
    (inbox / "after.jsonl").write_bytes(chat_rows(1, "after"))
    daemon.until_job("after.jsonl", "waiting")
    assert len(daemon.said("folder.jsonl is a folder")) == 1
    assert daemon.job("link.jsonl") is None
    assert secret.read_bytes() == GOOD


def test_same_content_is_trained_once_unless_asked_again(daemon, tmp_path):
    (daemon.workspace.inbox / "first.jsonl").write_bytes(chat_rows(2, "same"))
    first = daemon.until_job("first.jsonl", "waiting")
    (daemon.workspace.inbox / "second.jsonl").write_bytes(chat_rows(2, "same"))
    second = daemon.until_job("second.jsonl", "failed")
    assert f"job {first['id']}" in second["error"]["message"]
    copy = tmp_path / "third.jsonl"
    copy.write_bytes(chat_rows(2, "same"))
    refused = daemon.call("POST", "/v1/jobs", {"path": str(copy)})
    assert refused.status == 409 and "again" in refused.json["hint"]
    again = daemon.post("/v1/jobs", {"path": str(copy), "again": True})
    assert again["state"] == "waiting"


def test_names_that_are_no_text_are_taken_and_shown_safely(daemon):
    name = os.fsdecode(b"evil\x1b[2J\xff.jsonl")
    (daemon.workspace.inbox / name).write_bytes(chat_rows(1, "evil"))
    job = wait_for(lambda: next((j for j in daemon.jobs() if "evil" in j["name"]), None))
    assert job["name"] == "evil\\x1b[2J\\xff.jsonl"
