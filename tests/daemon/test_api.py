"""The API on one living daemon: shapes, errors, stale changes, the event stream, undo, versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace, wait_for

from trainer_tui.safety import unix_socket


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Harness]:
    """Training is paused before the first file comes, so that the queue stands still."""
    workspace = make_workspace(tmp_path_factory.mktemp("api") / "ws", "max_length = 512\n")
    harness = Harness(workspace).start()
    harness.post("/v1/training/pause")
    yield harness
    harness.close()


@pytest.fixture
def outside(tmp_path) -> Path:
    return tmp_path


def add(daemon: Harness, folder: Path, name: str, priority: str = "normal"):
    path = folder / name
    path.write_bytes(chat_rows(3, f"{folder}{name}"))
    job = daemon.post("/v1/jobs", {"path": str(path), "priority": priority})
    assert path.exists(), "a file that was added by name stays where it is"
    return job


def order(daemon: Harness) -> list[str]:
    return [job["name"] for job in daemon.jobs() if job["state"] == "waiting"]


@pytest.mark.parametrize(
    ("method", "path", "body", "detail"),
    [
        ("POST", "/v1/versions", {"description": "x" * 501},
         "description may have at most 500 characters"),
        ("POST", "/v1/versions", {"description": 7}, "description must be a text"),
        ("POST", "/v1/versions", {"name": "x"}, "name is not known here"),
        ("POST", "/v1/versions", [], "the body must be a JSON object"),
        ("POST", "/v1/versions/1/restore", {"requeue": "x"}, "requeue must be true or false"),
        ("POST", "/v1/versions/1/export", {}, "path is missing"),
        ("POST", "/v1/versions/1/export", {"path": ""}, "path must not be empty"),
        ("GET", "/v1/versions/one", None, "number must be a whole number"),
        ("GET", "/v1/versions/-1", None, "number must be at least 0"),
        ("GET", "/v1/metrics?points=6000", None, "points may be at most 5000"),
        ("POST", "/v1/jobs", {"path": "/x", "priority": "urgent"},
         "priority: it must be 'high', 'normal' or 'low'"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_read_is_answered_in_a_plain_sentence(
    daemon, method, path, body, detail
):
    refused = daemon.call(method, path, body)
    assert (refused.status, refused.json["detail"]) == (422, detail)


def test_added_file_waits_with_its_counts(daemon, outside):
    job = add(daemon, outside, "counts.jsonl", "high")
    assert job["state"] == "waiting" and job["priority"] == "high"
    assert job["rows"] == 3 and job["bytes"] > 0 and job["place"] == 1
    assert job["why_waiting"] == "training is paused"
    assert daemon.get(f"/v1/jobs/{job['id']}")["name"] == "counts.jsonl"
    assert daemon.get(f"/v1/jobs/{job['id']}/report")
    counts = daemon.status()["queue"]
    assert counts["waiting"] == counts["high"] + counts["normal"] + counts["low"] >= 1
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")


def test_moves_are_seen_in_order_and_undone(daemon, outside):
    ids = {name: add(daemon, outside, f"{name}.jsonl", "low")["id"] for name in ("a", "b", "c")}
    assert order(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    moved = daemon.call("PATCH", f"/v1/jobs/{ids['c']}", {"place": "top"})
    assert moved.status == 200 and moved.json["place"] == 1
    assert order(daemon) == ["c.jsonl", "a.jsonl", "b.jsonl"]
    daemon.call("PATCH", f"/v1/jobs/{ids['a']}", {"after": ids["b"]})
    assert order(daemon) == ["c.jsonl", "b.jsonl", "a.jsonl"]
    assert "moved" in daemon.post("/v1/undo")["text"]
    assert order(daemon) == ["c.jsonl", "a.jsonl", "b.jsonl"]
    daemon.post("/v1/undo")
    assert order(daemon) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    daemon.post("/v1/redo")
    assert order(daemon) == ["c.jsonl", "a.jsonl", "b.jsonl"]
    daemon.call("DELETE", f"/v1/jobs/{ids['a']}")
    assert order(daemon) == ["c.jsonl", "b.jsonl"]
    daemon.post("/v1/undo")
    assert order(daemon) == ["c.jsonl", "a.jsonl", "b.jsonl"]
    for job_id in ids.values():
        daemon.call("DELETE", f"/v1/jobs/{job_id}")


def test_priority_and_hold_are_changed_by_patch(daemon, outside):
    job = add(daemon, outside, "p.jsonl")
    changed = daemon.call("PATCH", f"/v1/jobs/{job['id']}", {"priority": "high", "held": True})
    assert changed.json["priority"] == "high" and changed.json["held"] is True
    assert "held" in changed.json["why_waiting"]
    freed = daemon.post(f"/v1/jobs/{job['id']}/unhold")
    assert freed["held"] is False
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")


def test_stale_change_is_refused_with_the_state_now(daemon, outside):
    job = add(daemon, outside, "stale.jsonl")
    seen = daemon.get("/v1/jobs")["revision"]
    daemon.call("PATCH", f"/v1/jobs/{job['id']}", {"priority": "low"})
    for more in ({"headers": {"If-Match": f'"{seen}"'}}, {}):
        body = {"priority": "high"} if more else {"priority": "high", "revision": seen}
        answer = daemon.call("PATCH", f"/v1/jobs/{job['id']}", body, **more)
        assert answer.status == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["current"]["priority"] == "low"
        assert answer.json["hint"]
    assert daemon.get(f"/v1/jobs/{job['id']}")["priority"] == "low"
    now = daemon.get("/v1/jobs")["revision"]
    assert (
        daemon.call("PATCH", f"/v1/jobs/{job['id']}", {"priority": "high", "revision": now}).status
        == 200
    )
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v1/jobs/999999", None, 404, "no job 999999"),
        ("GET", "/v1/nowhere", None, 404, "/v1/nowhere"),
        ("POST", "/v1/jobs", b"{not json", 400, "not JSON"),
        ("POST", "/v1/jobs", b"[" * 100_000, 400, ""),
        ("POST", "/v1/jobs", b"\xff\xfe", 400, ""),
        ("POST", "/v1/jobs", {"path": "relative.jsonl"}, 422, "not absolute"),
        ("POST", "/v1/jobs", {"path": "/no/such.jsonl"}, 409, "not there"),
        ("POST", "/v1/jobs", {"path": "/etc"}, 409, "folder"),
        ("POST", "/v1/jobs", {"path": "/x", "priority": "urgent"}, 422, "priority"),
        ("POST", "/v1/jobs", {"path": "/x", "unknown": 1}, 422, "unknown"),
        ("PATCH", "/v1/jobs/1", {"before": 1, "place": "top"}, 404, "no job"),
        ("POST", "/v1/training/skip", {}, 404, "no file is being trained"),
        ("GET", "/v1/metrics?series=nonsense", None, 422, "nonsense"),
        ("GET", "/v1/metrics?points=0", None, 422, "points"),
        ("POST", "/v1/versions", {}, 409, "nothing has been trained"),
        ("POST", "/v1/versions/77/restore", {}, 404, "no version 77"),
        ("POST", "/v1/versions/rollback", {}, 409, "no version"),
        ("DELETE", "/v1/versions/77", None, 404, "no version 77"),
        ("PATCH", "/v1/config", {"values": {"lerning_rate": 1}}, 422, "lerning_rate"),
        ("PATCH", "/v1/config", {"values": {"learning_rate": 7}}, 422, "learning_rate"),
        ("GET", "/v1/history?level=loud", None, 422, "level"),
        ("POST", "/v1/training/pause", {"revision": 1}, 409, "revision 1"),
        ("PUT", "/v1/status", None, 405, ""),
    ],
)  # fmt: skip
def test_errors_are_problem_documents_with_a_sentence(daemon, method, path, body, status, text):
    answer = daemon.call(method, path, body)
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "hint"} <= answer.json.keys()
    assert text in answer.json["detail"]


def test_last_event_id_that_is_no_number_is_refused(daemon):
    answer = daemon.call("GET", "/v1/events", headers={"Last-Event-ID": "abc"})
    assert answer.status == 400


def test_body_above_the_limit_is_refused_before_it_is_sent(daemon):
    client = unix_socket.connect(daemon.workspace.socket, 10)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967296\r\n\r\n"
    client.sendall(head.encode())
    assert client.recv(100).startswith(b"HTTP/1.1 413")
    client.close()


def test_event_stream_goes_on_where_a_client_left_it(daemon, outside):
    with daemon.events() as stream:
        job = add(daemon, outside, "one.jsonl")
        seen = stream.until("jobs", lambda data: any(j["id"] == job["id"] for j in data["changed"]))
    last = seen[0]
    daemon.call("PATCH", f"/v1/jobs/{job['id']}", {"priority": "high"})
    wait_for(lambda: daemon.status()["last_event_id"] > last)
    with daemon.events(after=last) as stream:
        moved = stream.until(
            "jobs", lambda data: any(j["priority"] == "high" for j in data["changed"])
        )
        assert moved[0] > last
        numbers = [number for number, _, _ in list(stream.seen)]
        assert numbers == sorted(set(numbers))
        daemon.call("DELETE", f"/v1/jobs/{job['id']}")
        stream.until("jobs", lambda data: job["id"] in data["removed"])
    with daemon.events(after=5) as stream:
        stream.until("reset")
    with daemon.events(after=2**52) as stream:
        stream.until("reset")


def test_history_is_searchable_newest_first(daemon, outside):
    job = add(daemon, outside, "findme.jsonl")
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")
    found = daemon.get("/v1/history?text=FINDME&limit=10")["events"]
    assert [event["topic"] for event in found] == ["job", "job"]
    assert "removed" in found[0]["text"] and found[0]["id"] > found[1]["id"]
    older = daemon.get(f"/v1/history?text=findme&before={found[0]['id']}")["events"]
    assert older == found[1:]


def test_config_edit_keeps_comments_and_guarded_keys_wait_for_approval(daemon):
    file = daemon.workspace.config_file
    file.write_text("# mine\n" + file.read_text())
    wait_for(lambda: daemon.said("config.toml was read again"))
    answer = daemon.call("PATCH", "/v1/config", {"values": {"max_length": 256}})
    assert answer.status == 200 and "approve max_length" in answer.json["text"]
    assert file.read_text().startswith("# mine\n")
    pending = daemon.status()["config"]["pending"]
    assert pending == [{"key": "max_length", "old": 512, "new": 256, "when": "needs_approval"}]
    approved = daemon.call("PATCH", "/v1/config", {"approve": ["max_length"]}).json
    assert approved["pending"] == []
    log = json.loads((daemon.workspace.state / "approvals.json").read_bytes())["log"]
    assert (log[-1]["old"], log[-1]["new"], log[-1]["by"]) == (512, 256, "api")


def test_broken_edit_keeps_the_last_good_settings_and_says_why(daemon):
    file = daemon.workspace.config_file
    good = file.read_text()
    file.write_text("learning_rate = 'fast'\n")
    problem = wait_for(lambda: daemon.status()["config"]["problem"])
    assert "learning_rate" in problem and "fast" in problem
    assert daemon.get("/v1/config")["values"]["max_length"] == 256
    dropped = daemon.workspace.inbox / "meanwhile.jsonl"
    dropped.write_bytes(chat_rows(2, "meanwhile"))
    job = daemon.until_job("meanwhile.jsonl", "waiting")
    assert job["verdict"] != "block" and not dropped.exists(), "intake goes on with them too"
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")
    file.write_text(good)
    wait_for(lambda: daemon.status()["config"]["problem"] is None)


def test_prometheus_and_openapi_are_served(daemon):
    text = daemon.call("GET", "/metrics").body.decode()
    assert 'trainer_tui_state{state="paused"} 1' in text
    paths = daemon.get("/v1/openapi.json")["paths"]
    assert "/v1/jobs/{job_id}" in paths and "/v1/versions/{number}/restore" in paths


def test_undoing_what_another_viewer_did_needs_force(daemon, outside):
    job = add(daemon, outside, "theirs.jsonl", "low")
    held = daemon.call("POST", f"/v1/jobs/{job['id']}/hold", {}, {"X-Actor": "the screen of ada"})
    assert held.status == 200
    refused = daemon.call("POST", "/v1/undo", {}, {"X-Actor": "cli:bob"})
    assert refused.status == 409 and "ada" in refused.json["detail"]
    assert "force" in refused.json["hint"]
    forced = daemon.call("POST", "/v1/undo", {"force": True}, {"X-Actor": "cli:bob"})
    assert forced.status == 200 and daemon.job("theirs.jsonl")["held"] is False
    assert daemon.said("undone: ")[0]["text"].endswith("(cli:bob)"), "other viewers hear of it"
    assert daemon.call("POST", "/v1/redo", {}, {"X-Actor": "cli:bob"}).status == 409
    again = daemon.call("POST", "/v1/redo", {"force": True}, {"X-Actor": "cli:bob"})
    assert again.status == 200 and daemon.said("done again: ")[0]["topic"] == "undo"
    daemon.call("DELETE", f"/v1/jobs/{job['id']}")
