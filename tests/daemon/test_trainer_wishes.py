"""What the trainer asks of the daemon, and what the daemon asks of it for a version."""

from __future__ import annotations

from daemon_harness import Harness, make_workspace, plant, set_stub, wait_for

from trainer_tui.safety import checkpoints

SETTINGS = "[versioning]\non_new_best = false\n"


def test_a_wish_for_a_rollback_restores_the_version_before_and_training_goes_on(tmp_path) -> None:
    workspace = make_workspace(tmp_path / "ws", SETTINGS, steps=100_000)
    bad = plant(workspace, "bad.jsonl")
    daemon = Harness(workspace).start()
    try:
        wait_for(lambda: (daemon.training()["global_step"] or 0) > 3)
        good = daemon.post("/v1/versions", {"description": "before it went wrong"})
        good_step = good["global_step"]
        set_stub(workspace, steps=100_000, want_rollback={str(bad.id): good_step + 20})
        said = wait_for(lambda: daemon.said("rolled back to version"))
        assert f"version {good['number']}: made to diverge" in said[0]["text"]
        assert daemon.job("bad.jsonl")["state"] == "failed"
        newest = checkpoints.newest_verified(workspace.current_model)
        assert newest is not None and newest.manifest.lineage == 1
        assert newest.manifest.reason == "rollback"
        plant(workspace, "next.jsonl")
        set_stub(workspace, steps=5)
        daemon.until_training("idle")
        assert daemon.training()["restarts"] == 0
    finally:
        daemon.close()


def test_with_no_version_to_go_back_to_that_is_said_and_training_goes_on(tmp_path) -> None:
    workspace = make_workspace(tmp_path / "ws", SETTINGS, steps=30)
    bad = plant(workspace, "bad.jsonl")
    set_stub(workspace, steps=30, want_rollback={str(bad.id): 4})
    plant(workspace, "next.jsonl")
    daemon = Harness(workspace).start()
    try:
        wait_for(lambda: daemon.said("not rolled back after divergence"))
        daemon.until_job("next.jsonl", "completed")
        assert daemon.job("bad.jsonl")["error"]["class"] == "divergence"
        assert daemon.job("bad.jsonl")["error"]["hint"]  # the class is known to the house
    finally:
        daemon.close()


def test_a_version_is_made_with_a_look_at_the_whole_set_and_a_wait_is_the_reason_shown(
    tmp_path,
) -> None:
    workspace = make_workspace(tmp_path / "ws", SETTINGS, steps=100_000, waits_at=8)
    plant(workspace, "a.jsonl")
    daemon = Harness(workspace).start()
    try:
        wait_for(lambda: daemon.training()["reason"] == "another process holds 9 GB of the card")
        with daemon.events() as stream:
            version = daemon.post("/v1/versions", {"description": "measured"})
            _, _, seen = stream.until("evaluated", lambda data: data["whole"])
            assert seen["step"] <= version["global_step"] and seen["loss"] == 0.5
            # A second one of the same state asks again: the trainer knows what is fresh.
            daemon.post("/v1/training/pause")
            daemon.until_training("paused")
            daemon.post("/v1/versions", {"description": "paused"})
            at = daemon.training()["global_step"]
            stream.until("evaluated", lambda data: data["step"] == at)
        assert daemon.training()["best_val_loss"] == 0.5
    finally:
        daemon.close()
