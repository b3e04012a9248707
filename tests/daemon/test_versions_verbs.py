"""Versions as a person meets them: the command line against a real daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from daemon_harness import Harness, make_workspace, plant, wait_for

from trainer_tui.safety import checkpoints, manifest

SETTINGS = """
[versioning]
on_new_best = false
second_location = "{second}"
[retention]
trash_days = 3
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Harness]:
    """Two versions, a file still in training, and a second location."""
    place = tmp_path_factory.mktemp("verbs")
    (place / "second").mkdir()
    settings = SETTINGS.format(second=place / "second")
    workspace = make_workspace(place / "ws", settings, steps=100_000)
    plant(workspace, "a.jsonl")
    harness = Harness(workspace).start()
    for text in ("the first", "the second"):
        make(harness, text)
    yield harness
    harness.close()


def make(daemon: Harness, text: str):
    at = daemon.training()["global_step"] or 0
    wait_for(lambda: (daemon.training()["global_step"] or 0) > at)
    return daemon.post("/v1/versions", {"description": text})


def verb(daemon: Harness, *words: str, code: int = 0, cwd: Path | None = None) -> str:
    """Run `trainer-tui`; its output, errors behind."""
    command = [sys.executable, "-m", "trainer_tui.tui.cli", "-w", str(daemon.workspace.root)]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout + done.stderr


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # its links keep the sound content
    path.write_bytes(data)


def test_show_and_diff_are_cards_for_people_and_json_for_programs(daemon):
    shown = verb(daemon, "versions", "show", "v002")
    assert "the second" in shown and "grew from" in shown and "{" not in shown
    document = json.loads(verb(daemon, "versions", "show", "2", "--json"))
    assert document["impact"]["files"] == 0 and document["files_since"] == []
    between = verb(daemon, "versions", "diff", "v001", "v002")
    assert "v001_" in between and "steps" in between and "{" not in between
    steps = json.loads(verb(daemon, "versions", "diff", "1", "2", "--json"))["steps"]
    assert f"+{steps}" in between and steps > 0
    assert "intact" in verb(daemon, "versions", "verify", "1")


def test_an_emergency_backup_undoes_a_restore_and_the_graph_shows_it(daemon):
    left = make(daemon, "left behind")
    verb(daemon, "versions", "restore", "1", "--yes")
    listed = verb(daemon, "versions", "emergencies")
    assert "e001" in listed and f"before v{1:03d}" in listed
    [kept] = daemon.get("/v1/versions/emergencies")["emergencies"]
    assert kept["global_step"] >= left["global_step"] and kept["state"] == "ok"
    verb(daemon, "versions", "emergencies", "restore", "e001", "--yes")
    newest = wait_for(lambda: checkpoints.newest_verified(daemon.workspace.current_model))
    assert newest.manifest.lineage == 2 and newest.manifest.extra["restored_from"] == kept["name"]
    graph = verb(daemon, "versions", "graph")
    assert "◆" in graph and "restore of v001" in graph and "left behind" in graph
    lineage = daemon.get("/v1/versions/lineage")
    assert [b["source"][:4] for b in lineage["branches"]] == ["v001", "e001"]
    assert "e009" not in verb(daemon, "versions", "emergencies", "restore", "9", "-y", code=1)


def test_export_makes_a_whole_folder_and_refuses_one_that_is_there(daemon, tmp_path):
    told = verb(daemon, "versions", "export", "v001", "shipped", cwd=tmp_path)
    assert str(tmp_path / "shipped") in told
    for entry in manifest.read(tmp_path / "shipped").files:
        checkpoints.verify_file(tmp_path / "shipped", entry)
    assert "exists already" in verb(
        daemon, "versions", "export", "1", str(tmp_path / "shipped"), code=1
    )
    refused = daemon.call("POST", "/v1/versions/1/export", {"path": "not/absolute"})
    assert refused.status == 409 and "absolute" in refused.json["detail"]


def test_backup_now_copies_what_is_missing_and_a_lost_version_comes_back(daemon):
    wait_for(lambda: not daemon.get("/v1/backup")["running"])
    verb(daemon, "backup", "now")
    said = verb(daemon, "backup", "status")
    assert "missing: none" in said and "the same disk" in said
    folder = daemon.workspace.versions / daemon.get("/v1/versions/1")["name"]
    assert "here and sound" in verb(daemon, "backup", "fetch", "v001", code=1)
    damage(folder / "model.safetensors")
    assert "damaged" in verb(daemon, "versions", "verify", "v001", code=1)
    assert "intact" in verb(daemon, "backup", "fetch", "v001")
    assert daemon.get("/v1/versions/1")["state"] == "ok"
    done = daemon.post("/v1/backup")["done"]
    assert daemon.get("/v1/versions/1")["name"] in done["already"]


def test_a_damaged_record_is_shown_as_such_and_nothing_else_breaks(daemon):
    version = make(daemon, "its record dies")
    record = daemon.workspace.versions / version["name"] / "VERSION.json"
    record.unlink()
    record.write_text("{")
    found = daemon.get(f"/v1/versions/{version['number']}")
    assert found["state"] == "corrupt" and found["automatic"] is False
    for words in (["list"], ["show", str(version["number"])], ["graph"]):
        assert "corrupt" in verb(daemon, "versions", *words) or words == ["graph"]
    verb(daemon, "versions", "diff", "1", str(version["number"]), code=1)
    said = verb(daemon, "versions", "delete", str(version["number"]), "--yes")
    thrown, *_ = daemon.get("/v1/versions/trash")["trashed"]
    at, until = (datetime.fromisoformat(thrown[key]) for key in ("deleted_at", "keep_until"))
    assert until - at == timedelta(days=3), "retention.trash_days, not a number of the program's"
    assert f"in the trash until {until:%Y-%m-%d %H:%M}" in said and "undelete" in said
    assert version["name"] in verb(daemon, "versions", "trash")


def test_a_damaged_ledger_is_told_before_anybody_says_yes(serve):
    daemon = serve(settings="[versioning]\nafter_every_file = true\n", steps=4)
    for count, name in enumerate(("a.jsonl", "b.jsonl"), 1):
        plant(daemon.workspace, name)
        daemon.start()
        daemon.until_job(name, "completed")
        wait_for(lambda wanted=count: len(daemon.get("/v1/versions")["versions"]) == wanted)
        assert daemon.stop() == 0
    daemon.start()
    assert "b.jsonl" in verb(daemon, "versions", "show", "1")
    last = sorted(daemon.workspace.ledger.glob("*.json"))[-1]
    last.unlink()
    told = f"is not known: ledger segment {last.name} is missing"
    assert told in verb(daemon, "versions", "show", "1")
    asked = verb(daemon, "versions", "restore", "1", code=1)  # nobody answers
    assert told in asked
    assert told in verb(daemon, "versions", "rollback", code=1)
    assert daemon.get("/v1/versions/1")["files_since_problem"]


def test_a_wish_that_cannot_be_is_refused_in_plain_sentences(daemon):
    far = "99999999999999999999"
    for words in (["show"], ["verify"], ["pin"], ["delete", "-y"], ["restore", "-y"]):
        assert f"there is no version {far}" in verb(daemon, "versions", *words, far, code=1)
    assert f"version {far} is not in the trash" in verb(daemon, "versions", "undelete", far, code=1)
    gone = verb(daemon, "versions", "emergencies", "restore", far, "-y", code=1)
    assert f"there is no emergency backup {far}" in gone
    said = verb(daemon, "versions", "create", "-m", "x" * 501, code=1)
    assert "description may have at most 500 characters" in said
    assert not any(word in said for word in ("body.", "Input should", "String"))


SLOW_DISK = """
import time
from pathlib import Path
from trainer_tui.versions import check
place, real = Path({place!r}), check._prove_file
def slow(folder, entry, verified, should_stop):
    (place / "hashing").touch()
    while not (place / "faster").exists():
        time.sleep(0.01)
    real(folder, entry, verified, should_stop)
check._prove_file = slow
"""


def test_hashing_on_a_slow_disk_holds_up_neither_a_look_nor_the_end(serve, tmp_path):
    settings = "[versioning]\non_new_best = false\n[retention]\ncheckpoints = 1\n"
    daemon = serve(settings=settings, steps=100_000, save_every=20)
    daemon.prelude = SLOW_DISK.format(place=str(tmp_path))
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    wait_for((tmp_path / "hashing").exists, why="retention hashes, and is stuck in a file")
    assert daemon.get("/v1/versions")["versions"] == []
    trainer = daemon.training()["trainer_pid"]
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{trainer}").exists())
    until_s = time.monotonic() + 1.5
    while time.monotonic() < until_s:  # it waits for the file to end, and its loop does not
        assert daemon.call("GET", "/v1/ping", timeout_s=5).status == 200
    (tmp_path / "faster").touch()
    assert daemon.ended() == 0
