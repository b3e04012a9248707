"""Versions through the API: made with what is unsaved, restored with the trainer out of the way."""

from __future__ import annotations

import hashlib

import pytest
from daemon_harness import plant, wait_for

from trainer_tui.safety import checkpoints

SETTINGS = "[versioning]\non_new_best = false\n"


@pytest.fixture
def daemon(serve):
    harness = serve(settings=SETTINGS, steps=10_000)
    plant(harness.workspace, "a.jsonl")
    harness.start()
    wait_for(lambda: (harness.training()["global_step"] or 0) > 5)
    return harness


def test_rollback_commits_an_older_version_and_training_goes_on_from_it(daemon):
    first = daemon.post("/v1/versions", {"description": "the first"})
    assert first["number"] == 1 and first["description"] == "the first"
    assert first["automatic"] is False
    at = daemon.training()["global_step"]
    wait_for(lambda: daemon.training()["global_step"] > at + 5)
    with daemon.events() as stream:
        second = daemon.post("/v1/versions", {"description": "the second"})
        stream.until("versions", lambda data: data["latest"] == 2)
    assert second["global_step"] > first["global_step"]
    answer = daemon.post("/v1/versions/rollback", timeout_s=60)
    assert answer["restored"]["number"] == 1
    daemon.until_training("training")
    newest = wait_for(lambda: checkpoints.newest_verified(daemon.workspace.current_model))
    assert newest.manifest.lineage == 1
    assert newest.manifest.global_step > second["global_step"], "the step never falls"
    training = daemon.training()
    assert training["lineage"] == 1 and training["restarts"] == 0
    assert training["intent"]["training"] == "run"
    assert daemon.job("a.jsonl")["state"] == "processing"


def test_restore_of_a_damaged_version_is_refused_and_training_goes_on(daemon):
    version = daemon.post("/v1/versions", {"description": "good"})
    folder = daemon.workspace.versions / version["name"]
    weights = folder / "model.safetensors"
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    trainer = daemon.training()["trainer_pid"]
    refused = daemon.call("POST", "/v1/versions/1/restore", {})
    assert refused.status == 409 and "damaged" in refused.json["detail"]
    assert daemon.training()["trainer_pid"] == trainer, "the trainer was not even stopped"
    assert daemon.get("/v1/versions/1")["state"] == "corrupt"
    assert daemon.training()["state"] in ("training", "saving")


def test_a_pause_holds_over_a_restore(daemon):
    daemon.post("/v1/versions", {"description": "v"})
    daemon.post("/v1/training/pause")
    answer = daemon.post("/v1/versions/1/restore", timeout_s=60)
    assert answer["status"]["training"]["state"] == "paused"
    assert answer["status"]["training"]["trainer_pid"] is None


def test_files_of_a_version_are_served_in_ranges_with_their_hash(daemon):
    daemon.post("/v1/versions", {"description": "v"})
    whole = daemon.call("GET", "/v1/versions/1/files/model.safetensors")
    digest = hashlib.sha256(whole.body).hexdigest()
    assert whole.headers["etag"] == f'"{digest}"'
    part = daemon.call(
        "GET", "/v1/versions/1/files/model.safetensors", headers={"Range": "bytes=8-15"}
    )
    assert part.status == 206 and part.body == whole.body[8:16]
    same = daemon.call(
        "GET", "/v1/versions/1/files/model.safetensors", headers={"If-None-Match": f'"{digest}"'}
    )
    assert same.status == 304 and not same.body
    for name in ("../../config.toml", "nothing", "%2e%2e/VERSION.json"):
        assert daemon.call("GET", f"/v1/versions/1/files/{name}").status == 404


def test_pin_delete_and_undelete(daemon):
    for text in ("a", "b", "c"):
        at = daemon.training()["global_step"]
        wait_for(lambda at=at: daemon.training()["global_step"] > at)
        daemon.post("/v1/versions", {"description": text})
    daemon.post("/v1/versions/1/pin")
    refused = daemon.call("DELETE", "/v1/versions/1")
    assert refused.status == 409 and "pinned" in refused.json["detail"]
    daemon.post("/v1/versions/1/unpin")
    assert daemon.call("DELETE", "/v1/versions/1").status == 200
    numbers = [version["number"] for version in daemon.get("/v1/versions")["versions"]]
    assert numbers == [3, 2]
    daemon.post("/v1/versions/1/undelete")
    assert daemon.get("/v1/versions/1")["description"] == "a"


def test_versions_are_made_by_themselves(serve):
    daemon = serve(settings="[versioning]\nafter_every_file = true\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    made = wait_for(lambda: daemon.get("/v1/versions")["versions"])
    assert made[0]["automatic"] is True
    assert [file["name"] for file in made[0]["files"]] == ["a.jsonl"]
    wait_for(lambda: daemon.status()["model"]["latest_version"] == 1)
