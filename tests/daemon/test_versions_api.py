"""Versions through the API: made with what is unsaved, restored with the trainer out of the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from daemon_harness import Harness, make_workspace, plant, wait_for

from trainer_tui.safety import checkpoints

SETTINGS = "[versioning]\non_new_best = false\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Harness]:
    """Training for ever; each test makes the versions it works with."""
    workspace = make_workspace(tmp_path_factory.mktemp("versions") / "ws", SETTINGS, steps=100_000)
    plant(workspace, "a.jsonl")
    harness = Harness(workspace).start()
    yield harness
    harness.close()


def a_step_later(daemon: Harness) -> None:
    """There is at least one step that was not there before."""
    at = daemon.training()["global_step"] or 0
    wait_for(lambda: (daemon.training()["global_step"] or 0) > at)


def make(daemon: Harness, text: str):
    """A version of a step of its own, with training going on."""
    a_step_later(daemon)
    return daemon.post("/v1/versions", {"description": text})


def test_rollback_commits_an_older_version_and_training_goes_on_from_it(daemon):
    first = make(daemon, "the first")
    assert first["description"] == "the first" and first["automatic"] is False
    with daemon.events() as stream:
        second = make(daemon, "the second")
        stream.until("versions", lambda data: data["latest"] == second["number"])
    assert second["global_step"] > first["global_step"]
    shown = daemon.get("/v1/versions/rollback")["version"]["number"]
    assert shown == first["number"]
    a_step_later(daemon)
    daemon.post("/v1/training/checkpoint")  # the target of now is another one after this
    assert daemon.get("/v1/versions/rollback")["version"]["number"] == second["number"]
    answer = daemon.post("/v1/versions/rollback", {"version": shown}, timeout_s=60)
    assert answer["restored"]["number"] == first["number"], "what was shown and agreed to"
    daemon.until_training("training")
    newest = wait_for(lambda: checkpoints.newest_verified(daemon.workspace.current_model))
    assert newest.manifest.lineage == 1
    assert newest.manifest.global_step > second["global_step"], "the step never falls"
    training = daemon.training()
    assert training["lineage"] == 1 and training["restarts"] == 0
    assert training["intent"]["training"] == "run"
    assert daemon.job("a.jsonl")["state"] == "processing"


def test_restore_of_a_damaged_version_is_refused_and_training_goes_on(daemon):
    version = make(daemon, "good")
    folder = daemon.workspace.versions / version["name"]
    weights = folder / "model.safetensors"
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    trainer = daemon.training()["trainer_pid"]
    refused = daemon.call("POST", f"/v1/versions/{version['number']}/restore", {})
    assert refused.status == 409 and "damaged" in refused.json["detail"]
    assert daemon.training()["trainer_pid"] == trainer, "the trainer was not even stopped"
    assert daemon.get(f"/v1/versions/{version['number']}")["state"] == "corrupt"
    assert daemon.training()["state"] in ("training", "saving")


def test_a_pause_holds_over_a_restore(daemon):
    number = make(daemon, "v")["number"]
    daemon.post("/v1/training/pause")
    daemon.until_training("paused")
    trainer = daemon.training()["trainer_pid"]
    answer = daemon.post(f"/v1/versions/{number}/restore", timeout_s=60)
    daemon.until_training("paused")
    now = daemon.training()
    assert now["trainer_pid"] == trainer, "it keeps the model, and its place on the card"
    assert now["global_step"] == answer["restored"]["global_step"]
    daemon.post("/v1/training/resume")
    daemon.until_training("training")


def test_files_of_a_version_are_served_in_ranges_with_their_hash(daemon):
    at = f"/v1/versions/{make(daemon, 'v')['number']}/files"
    whole = daemon.call("GET", f"{at}/model.safetensors")
    digest = hashlib.sha256(whole.body).hexdigest()
    assert whole.headers["etag"] == f'"{digest}"'
    part = daemon.call("GET", f"{at}/model.safetensors", headers={"Range": "bytes=8-15"})
    assert part.status == 206 and part.body == whole.body[8:16]
    known = {"If-None-Match": f'"{digest}"'}
    same = daemon.call("GET", f"{at}/model.safetensors", headers=known)
    assert same.status == 304 and not same.body
    for name in ("../../config.toml", "nothing", "%2e%2e/VERSION.json"):
        assert daemon.call("GET", f"{at}/{name}").status == 404


def test_pin_delete_and_undelete(daemon):
    numbers = [make(daemon, text)["number"] for text in "abc"]
    old = numbers[0]
    daemon.post(f"/v1/versions/{old}/pin")
    refused = daemon.call("DELETE", f"/v1/versions/{old}")
    assert refused.status == 409 and "pinned" in refused.json["detail"]
    daemon.post(f"/v1/versions/{old}/unpin")
    assert daemon.call("DELETE", f"/v1/versions/{old}").status == 200
    there = [version["number"] for version in daemon.get("/v1/versions")["versions"]]
    assert old not in there and there[:2] == numbers[:0:-1]
    daemon.post(f"/v1/versions/{old}/undelete")
    assert daemon.get(f"/v1/versions/{old}")["description"] == "a"


def test_versions_are_made_by_themselves(serve):
    daemon = serve(settings="[versioning]\nafter_every_file = true\n")
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    made = wait_for(lambda: daemon.get("/v1/versions")["versions"])
    assert made[0]["automatic"] is True
    assert [file["name"] for file in made[0]["files"]] == ["a.jsonl"]
    wait_for(lambda: daemon.status()["model"]["latest_version"] == 1)
