"""Going back: a new checkpoint with the old state, and nothing lost on the way."""

from __future__ import annotations

import json

import pytest

from trainer_tui.safety import checkpoints, locks, manifest, proofs
from trainer_tui.safety.errors import Corrupt, NotFound, Refused
from trainer_tui.versions import records


def two_versions(house):
    house.train_file("a.jsonl")
    house.store.create(house.checkpoint(100), "one")
    house.train_file("b.jsonl")
    house.store.create(house.checkpoint(200), "two")
    house.train_file("c.jsonl")
    return house.checkpoint(250)


def test_restore_commits_the_old_state_as_the_newest_checkpoint(house):
    two_versions(house)
    old = house.content(house.workspace.current_model / "checkpoint-100")
    done = house.store.restore(1)
    newest = house.newest()
    assert newest.folder.name == done.checkpoint == "checkpoint-251"
    assert house.content(newest.folder) == old
    sealed = newest.manifest
    assert sealed.global_step == 251 and sealed.lineage == 1
    assert sealed.parent.startswith("v001_") and sealed.reason == "restore"
    assert sealed.ledger == house.store.get(1).record.ledger
    assert sealed.tokens == 100 * 100 and sealed.lr_factor == 0.5
    assert not sealed.weights_only and not done.weights_only
    assert [file.name for file in done.files_since] == ["c.jsonl", "b.jsonl"]
    json.dumps(done.as_dict())


def test_the_schedule_goes_on_where_the_version_stood(house):
    two_versions(house)
    house.store.restore(1)
    sealed = house.newest().manifest
    assert sealed.global_step - sealed.schedule_origin == 100
    assert sealed.global_step - sealed.warmup_origin == 100
    assert sealed.extra["cool_down"] == [sealed.global_step - 10, 50]


def test_a_weights_only_restore_says_so_and_warms_up_again(house):
    house.store.create(house.checkpoint(100), "one", keep_optimizer=False)
    house.checkpoint(200)
    done = house.store.restore(1)
    sealed = house.newest().manifest
    assert done.weights_only and any("warms up again" in note for note in done.notes)
    assert sealed.weights_only and sealed.warmup_origin == sealed.global_step == 201
    assert not any(entry.role == "optimizer" for entry in sealed.files)


def test_the_state_that_is_left_has_an_emergency_backup(house):
    left = two_versions(house)
    done = house.store.restore(1)
    (backup,) = house.store.emergencies()
    assert backup.name == done.emergency and backup.origin.checkpoint == "checkpoint-250"
    assert checkpoints.verify(backup.folder) == manifest.read(left)
    again = house.store.restore_emergency(backup.number)
    assert house.newest().folder.name == again.checkpoint == "checkpoint-252"
    assert house.content(again.folder) == house.content(left)
    assert {version.number for version in house.store.list() if version.live} == {1, 2}
    with pytest.raises(NotFound):
        house.store.restore_emergency(77)


def test_nothing_is_restored_under_a_trainer(house):
    two_versions(house)
    lock = locks.acquire(house.workspace.writer_lock)
    before = sorted(path.name for path in house.workspace.current_model.iterdir())
    with pytest.raises(Refused, match="trainer is still using the model"):
        house.store.restore(1)
    assert sorted(path.name for path in house.workspace.current_model.iterdir()) == before
    lock.release()
    house.store.restore(1)


def test_a_corrupt_version_is_refused_with_the_reason_and_nothing_changes(house, flip):
    two_versions(house)
    flip(house.store.get(1).folder / "model.safetensors")
    with pytest.raises(Corrupt, match=r"v001_\d+ cannot be restored: .*model\.safetensors"):
        house.store.restore(1)
    assert house.newest().folder.name == "checkpoint-250"
    assert house.store.get(1).state == "corrupt"
    assert house.store.emergencies() == ()
    with pytest.raises(Corrupt, match="is corrupt"):
        house.store.restore(1)


def test_a_damaged_optimizer_can_be_left_out_by_name_only(house, flip):
    two_versions(house)
    flip(house.store.get(1).folder / "optimizer" / "optimizer.safetensors")
    with pytest.raises(Corrupt, match=r"optimizer\.safetensors"):
        house.store.restore(1)
    assert house.store.get(1).state == "corrupt"
    assert house.store.restore(1, weights_only=True).weights_only
    assert house.store.get(1).state == "corrupt", "its optimizer still is"


def test_rollback_goes_back_one_version_at_a_time(house):
    two_versions(house)
    assert house.store.rollback_target().number == 2
    assert house.store.rollback().number == 2  # steps since v002 are left
    assert house.store.rollback().number == 1  # nothing since: one further back
    with pytest.raises(Refused, match="no version before"):
        house.store.rollback()
    assert house.newest().manifest.global_step == 252
    house.checkpoint(260, lineage=2)
    assert house.store.rollback().number == 1


def test_rollback_right_after_a_version_was_made_goes_to_the_one_before(house):
    house.store.create(house.checkpoint(100), "one")
    house.store.create(house.checkpoint(200), "two")
    house.store.create(house.workspace.current_model / "checkpoint-200", "two again")
    assert house.store.rollback_target().number == 1


def test_rollback_does_not_lead_into_a_branch_that_was_left(house):
    two_versions(house)
    house.store.restore(1)
    house.head = house.newest().manifest.ledger
    house.checkpoint(260, lineage=1)
    live = {version.number: version.live for version in house.store.list()}
    assert live == {1: True, 2: False}
    assert house.store.rollback_target().number == 1
    house.store.create(house.workspace.current_model / "checkpoint-260", "three")
    assert house.store.get(3).record.parent == house.store.get(1).name
    assert [file.name for file in house.store.files_since(2)] == []


def test_a_version_saves_a_model_whose_checkpoints_are_all_damaged(house, flip):
    two_versions(house)
    house.store.create(house.workspace.current_model / "checkpoint-250", "three")
    version_copy = house.store.export(1, house.workspace.root.parent / "kept")
    for folder in checkpoints.list_folders(house.workspace.current_model):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(Corrupt, match="no checkpoint verifies"):
        house.newest()
    done = house.store.restore(1)
    assert done.global_step == 251 and done.emergency == ""
    assert (
        house.content(house.newest().folder)["model.safetensors"]
        == (version_copy / "model.safetensors").read_bytes()
    )


def test_the_global_step_is_above_damaged_and_marked_checkpoints_too(house):
    two_versions(house)
    house.checkpoint(300).rename(house.workspace.current_model / "checkpoint-300.bad")
    assert house.store.restore(1).global_step == 301
    house.checkpoint(310).rename(house.workspace.current_model / "checkpoint-310.bad2")
    assert house.store.restore(1).global_step == 311


def test_a_version_without_its_ledger_is_refused(house):
    two_versions(house)
    head = house.store.get(1).record.ledger
    path = manifest.segment_path(house.workspace.ledger, head)
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(Corrupt, match="ledger segment"):
        house.store.restore(1)
    assert house.newest().folder.name == "checkpoint-250"


def test_lineages_are_never_used_twice(house):
    two_versions(house)
    assert [house.store.restore(1).lineage for _ in range(3)] == [1, 2, 3]
    branches = records.read_branches(house.store.layout)
    assert [branches[number].global_step for number in (1, 2, 3)] == [251, 252, 253]


def test_the_graph_shows_what_was_left_and_what_lives(house):
    two_versions(house)
    house.store.restore(1)
    house.checkpoint(260, lineage=1)
    house.store.create(house.workspace.current_model / "checkpoint-260", "other way")
    house.checkpoint(300, lineage=1)
    graph = house.store.lineage()
    drawing = graph.draw()
    assert [row.split("  ")[0] for row in drawing] == ["◆", "●", "○", "│ ●", "├─╯", "●"]
    live = {node.name.split("_")[0]: node.live for node in graph.nodes}
    assert live["v001"] and live["v003"] and not live["v002"]
    json.dumps(graph.as_dict())


def hashed_by(house, monkeypatch, **how) -> list[str]:
    """Names of the files that a look for the newest checkpoint reads and hashes."""
    seen: list[str] = []
    real = checkpoints.verify_file
    monkeypatch.setattr(
        checkpoints, "verify_file", lambda at, entry: seen.append(entry.name) or real(at, entry)
    )
    checkpoints.newest_verified(house.workspace.current_model, **how)
    monkeypatch.undo()
    return seen


def test_what_a_restore_has_just_hashed_is_not_hashed_again_by_the_trainer(house, monkeypatch):
    two_versions(house)
    done = house.store.restore(1)
    assert hashed_by(house, monkeypatch, believe_note=True) == []
    assert len(hashed_by(house, monkeypatch)) == 4, "nobody else believes the note"
    house.checkpoint(260, lineage=1)
    assert len(hashed_by(house, monkeypatch, believe_note=True)) == 4, "another is the newest now"
    checkpoints.list_folders(house.workspace.current_model)[0].rename(house.workspace.root / "away")
    assert hashed_by(house, monkeypatch, believe_note=True) == []

    weights = done.folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    newest = checkpoints.newest_verified(house.workspace.current_model, believe_note=True)
    assert newest.folder.name == "checkpoint-250", "a file that is another one proves nothing"
    assert "model.safetensors does not match" in newest.passed_over[0]


@pytest.mark.parametrize(
    ("changed", "value"), [("boot", "another"), ("at_s", -1000.0), ("at_s", 1e12), ("files", {})]
)
def test_a_note_of_another_time_or_boot_is_no_proof(house, monkeypatch, changed, value):
    two_versions(house)
    house.store.restore(1)
    path = house.workspace.current_model / proofs.NOTE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {changed: value}))
    assert len(hashed_by(house, monkeypatch, believe_note=True)) == 4
    path.write_text("{")
    assert len(hashed_by(house, monkeypatch, believe_note=True)) == 4
