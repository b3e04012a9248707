"""Versions are made, listed, proven, compared, deleted and brought back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load_file

from trainer_tui.safety import checkpoints, durable, hashing, manifest
from trainer_tui.safety.config import Config, Retention
from trainer_tui.safety.errors import Corrupt, NotFound, Refused
from trainer_tui.versions import keeping


def test_a_version_shares_its_checkpoints_files_and_costs_almost_nothing(house):
    folder = house.checkpoint(100, elements=1 << 20)
    version = house.store.create(folder, "first milestone")
    shared = version.folder / "model.safetensors"
    assert version.number == 1 and version.state == "ok"
    assert shared.stat().st_ino == (folder / "model.safetensors").stat().st_ino
    new_bytes = sum(
        path.stat().st_size
        for path in version.folder.rglob("*")
        if path.is_file() and path.stat().st_nlink == 1
    )
    assert new_bytes < 1_000_000
    assert load_file(shared)["layer.weight"][0] == 100


def test_a_version_folder_is_a_complete_model_without_its_optimizer(house):
    version = house.store.create(house.checkpoint(100), "m")
    sealed = checkpoints.verify(version.folder)
    assert sealed.weights_only
    assert {entry.role for entry in sealed.files} == {"weights", "model", "state"}
    assert not version.weights_only  # the optimizer is kept apart, as a part
    assert checkpoints.verify(version.folder / "optimizer").files[0].role == "optimizer"


def test_the_record_says_what_was_trained_since_the_parent(house):
    house.train_file("a.jsonl")
    first = house.store.create(house.checkpoint(100, validation=1.5), "one")
    house.train_file("b.jsonl")
    house.train_file("c.jsonl", before=1.5, after=1.2)
    second = house.store.create(house.checkpoint(200, validation=1.2), "two", automatic=True)
    assert [file.name for file in first.record.files] == ["a.jsonl"]
    assert [file.name for file in second.record.files] == ["c.jsonl", "b.jsonl"]
    assert second.record.parent == first.name
    shown = second.as_dict()
    assert shown["automatic"] and shown["validation"] == {"fixed": 1.2}
    assert shown["files"][0]["val_change"] == pytest.approx(-0.3)
    assert shown["files"][0]["minutes"] == 2.0
    json.dumps(house.store.as_dict())


def test_show_tells_what_the_files_did(house):
    house.train_file("a.jsonl", before=2.0, after=1.5)
    house.train_file("b.jsonl", before=1.5, after=1.6)
    house.store.create(house.checkpoint(100, elements=1 << 14), "one")
    house.train_file("c.jsonl")
    house.checkpoint(200)
    shown = house.store.show(1)
    assert shown["impact"]["val_change"] == pytest.approx(-0.4)
    assert shown["impact"]["minutes"] == 4.0 and shown["impact"]["measured"] == 2
    assert [file["name"] for file in shown["strongest"]] == ["a.jsonl", "b.jsonl"]
    assert [file["name"] for file in shown["files_since"]] == ["c.jsonl"]
    assert shown["exclusive_bytes"] < shown["bytes"]  # the checkpoint has them too
    json.dumps(shown)


def test_with_a_damaged_ledger_show_says_that_what_came_since_is_not_known(house):
    house.train_file()
    house.store.create(house.checkpoint(100), "")
    house.train_file()
    torn = manifest.segment_path(house.workspace.ledger, house.head)
    house.train_file()
    house.checkpoint(200)
    assert house.store.show(1)["files_since_problem"] is None
    for tear in (lambda: torn.write_bytes(b"torn"), torn.unlink, torn.mkdir):
        torn.chmod(0o600) if torn.exists() else None
        tear()
        shown = house.store.show(1)
        assert shown["files_since"] == [] and torn.name in shown["files_since_problem"]
        assert shown["problem"] is None and shown["state"] == "ok"


def test_lists_carry_the_last_files_only(house):
    for _ in range(25):
        house.train_file()
    version = house.store.create(house.checkpoint(100), "")
    listed = house.store.as_dict()["versions"][0]
    assert [file["job_id"] for file in listed["files"]] == list(range(25, 5, -1))
    assert listed["files_more"] and not version.as_dict()["files_more"]
    assert len(version.as_dict()["files"]) == 25


def test_of_two_folders_with_one_number_the_sound_one_is_meant(house):
    version = house.store.create(house.checkpoint(100), "")
    (house.workspace.versions / "v001_20991231").mkdir()
    assert house.store.get(1).name == version.name


def test_two_sound_folders_of_one_number_protect_the_one_before_them_too(house):
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    folder = house.store.get(3).folder
    shutil.copytree(folder, folder.with_name("v003_20991231"))
    house.checkpoint(400)
    assert [version.state for version in house.store.list()] == ["ok"] * 4
    with pytest.raises(Refused, match="the 2 newest versions always stay"):
        house.store.delete(2)
    keeping.apply(house.workspace, Config(retention=Retention(versions=2, daily_days=0)))
    left = [version.number for version in house.store.list()]
    assert left == [3, 3, 2]


def test_models_may_lie_on_another_filesystem_than_the_state(on_two_filesystems):
    house = on_two_filesystems
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    house.store.delete(1)
    assert [entry.note.name.split("_")[0] for entry in house.store.trashed()] == ["v001"]
    assert house.store.undelete(1).state == "ok" and house.store.verify(1).ok
    done = house.store.restore(1)
    assert house.newest().folder.name == done.checkpoint
    keeping.apply(house.workspace, Config(retention=Retention(checkpoints=1)))
    assert house.newest().folder.name == done.checkpoint
    assert len(checkpoints.list_folders(house.workspace.current_model)) == 1


def test_numbers_are_never_used_twice(house):
    folder = house.checkpoint(100)
    for _ in range(4):
        house.store.create(folder, "")
    house.store.delete(2)
    house.store.layout.version_counter.unlink()  # even when the counter is lost
    assert house.store.create(folder, "").number == 5
    house.store.layout.version_counter.write_text("garbage")
    assert house.store.create(folder, "").number == 6


def test_numbers_go_on_from_999_to_1000(house):
    folder = house.checkpoint(100)
    durable.replace(house.store.layout.version_counter, b"999")
    names = [house.store.create(folder, "").name for _ in range(3)]
    assert [name.split("_")[0] for name in names] == ["v999", "v1000", "v1001"]
    assert [version.number for version in house.store.list()] == [1001, 1000, 999]


RACER = """
import sys
from pathlib import Path
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.store import VersionStore
workspace = Workspace(Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(3):
    print(VersionStore(workspace).create(workspace.current_model / "checkpoint-100", "").number)
"""


def test_eight_processes_racing_for_numbers_get_different_ones(house):
    house.checkpoint(100)
    durable.replace(house.store.layout.version_counter, b"990")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(house.workspace.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    numbers = []
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        numbers += [int(line) for line in out.split()]
    assert sorted(numbers) == list(range(990, 1014))
    assert all(version.state == "ok" for version in house.store.list())


def test_damaged_versions_are_shown_with_their_state(house, flip):
    folder = house.checkpoint(100)
    for _ in range(6):
        house.store.create(folder, "", keep_optimizer=False)
    by_number = {version.number: version for version in house.store.list()}
    (by_number[1].folder / "MANIFEST.json").unlink()
    (by_number[2].folder / "config.json").unlink()
    (by_number[3].folder / "VERSION.json").write_text("{}") if os.geteuid() == 0 else None
    (house.workspace.versions / ".staging-v009_x").mkdir()
    (house.workspace.versions / "v077_20261124").mkdir()
    states = {version.number: version.state for version in house.store.list()}
    assert states == {
        77: "incomplete",
        6: "ok",
        5: "ok",
        4: "ok",
        3: "corrupt",
        2: "incomplete",
        1: "incomplete",
    }
    assert house.store.as_dict()["latest"] == 6


def test_verify_finds_one_flipped_bit_and_remembers_it(house, flip):
    version = house.store.create(house.checkpoint(100), "m")
    assert house.store.verify(1).ok
    flip(version.folder / "model.safetensors")
    assert house.store.get(1).state == "ok"  # names and sizes cannot tell
    proof = house.store.verify(1)
    assert not proof.ok and "model.safetensors" in proof.problem
    assert house.store.get(1).state == "corrupt"
    flip(version.folder / "model.safetensors")
    assert house.store.verify(1).ok
    assert house.store.get(1).state == "ok"


@pytest.fixture
def on_a_disk_of_its_own(build, tmp_path):
    """A house on a small filesystem, and what turns that read-only; needs root to mount it."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    def turn_read_only() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)

    try:
        yield build(root=place / "house"), turn_read_only
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_read_only_disk_verify_tells_and_every_change_is_refused(
    on_a_disk_of_its_own, flip, tmp_path, caplog
):
    house, turn_read_only = on_a_disk_of_its_own
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    flip(house.store.get(2).folder / "model.safetensors")
    turn_read_only()
    assert house.store.verify(1).ok
    proof = house.store.verify(2)
    assert not proof.ok and "does not match" in proof.problem
    assert "could not be noted" in caplog.text and "does not match" in caplog.text
    changes = (
        lambda: house.store.pin(1),
        lambda: house.store.unpin(1),
        lambda: house.store.hold(house.store.get(1).name),
        lambda: house.store.delete(1),
        lambda: house.store.undelete(1),
        lambda: house.store.restore(1),
        lambda: house.store.rollback(),
        lambda: house.store.create(house.newest().folder, ""),
    )
    for change in changes:
        with pytest.raises(Refused, match="the disk is read-only; nothing was changed"):
            change()
    assert house.store.export(1, tmp_path / "saved").is_dir(), "what can be saved can be"


def test_verify_looks_into_the_optimizer_too(house, flip):
    version = house.store.create(house.checkpoint(100), "m")
    flip(version.folder / "optimizer" / "optimizer.safetensors")
    assert "optimizer.safetensors" in house.store.verify(1).problem


def test_verify_opens_every_tensor(house):
    """A file that is exactly what was hashed but holds no readable tensors is no version."""
    final = house.workspace.current_model / "checkpoint-7"
    final.mkdir()
    (final / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    files = [checkpoints.entry_for(final, "model.safetensors", "weights")]
    sealed = house._manifest(7, 0, None, True, "2026-11-24T12:00:00.000Z", files, "c")
    (final / "MANIFEST.json").write_bytes(manifest.seal(sealed))
    house.store.create(final, "")
    proof = house.store.verify(1)
    assert not proof.ok and "no tensors" in proof.problem


def test_a_manifest_that_points_out_of_its_folder_is_refused(house):
    folder = house.checkpoint(100)
    sealed = manifest.read(folder)
    outside = msgspec.structs.replace(sealed.files[0], name="../../config.toml")
    target = house.workspace.current_model / "checkpoint-101"
    target.mkdir()
    evil = msgspec.structs.replace(sealed, global_step=101, files=[outside])
    (target / "MANIFEST.json").write_bytes(manifest.seal(evil))
    with pytest.raises(Corrupt, match="outside its folder"):
        house.store.create(target, "")
    assert house.store.list() == []


def test_no_version_is_made_of_a_damaged_or_missing_checkpoint(house):
    folder = house.checkpoint(100)
    (folder / "config.json").unlink()
    with pytest.raises(Corrupt, match=r"config\.json is missing"):
        house.store.create(folder, "")
    with pytest.raises(NotFound):
        house.store.create(folder.with_name("checkpoint-5"), "")
    with pytest.raises(Refused, match="600 characters"):
        house.store.create(folder, "x" * 600)
    assert house.store.list() == [] and house.left_overs() == []


def test_current_two_newest_and_pinned_cannot_be_deleted(house):
    folder = house.checkpoint(100)
    for step in (200, 300, 400, 500, 600):
        house.store.create(folder, "")
        folder = house.checkpoint(step)
    house.store.pin(2)
    house.store.restore(3)
    reasons = {}
    for number in (5, 4, 3, 2):
        with pytest.raises(Refused) as refusal:
            house.store.delete(number)
        reasons[number] = refusal.value.message
    assert "newest" in reasons[5] and "newest" in reasons[4]
    assert "current" in reasons[3] and "pinned" in reasons[2]
    house.store.delete(1)
    house.store.unpin(2)
    house.store.delete(2)
    assert [version.number for version in house.store.list()] == [5, 4, 3]


def test_a_deleted_version_comes_back_as_it_was(house):
    folder = house.checkpoint(100)
    for _ in range(3):
        house.store.create(folder, "same")
    before = house.store.get(1)
    house.store.delete(1)
    with pytest.raises(NotFound):
        house.store.get(1)
    assert [entry.note.name for entry in house.store.trashed()] == [before.name]
    assert house.store.undelete(1) == before
    assert house.store.verify(1).ok
    with pytest.raises(NotFound, match="not in the trash"):
        house.store.undelete(1)


def test_diff_tells_files_validation_and_settings(house):
    house.train_file("a.jsonl")
    house.store.create(house.checkpoint(100, validation=1.5), "one")
    house.train_file("b.jsonl", before=1.5, after=1.3)
    house.store.create(house.checkpoint(200, validation=1.3, config_hash="d" * 64), "two")
    found = house.store.diff(1, 2)
    assert [file.name for file in found.only_second] == ["b.jsonl"] and found.only_first == ()
    assert found.validation["fixed"].by == pytest.approx(-0.2)
    assert set(found.settings) == {"config_hash"}
    assert found.as_dict()["impact_second"]["val_change"] == pytest.approx(-0.2)
    assert [f.name for f in house.store.diff(2, 1).only_first] == ["b.jsonl"]
    json.dumps(found.as_dict())


def test_export_is_a_real_copy_with_the_same_hashes(house, tmp_path, flip):
    house.store.create(house.checkpoint(100), "m")
    target = house.store.export(1, tmp_path / "out", with_optimizer=True)
    assert (target / "model.safetensors").stat().st_nlink == 1
    checkpoints.verify(target)
    checkpoints.verify(target / "optimizer")
    with pytest.raises(Refused, match="exists already"):
        house.store.export(1, target)
    with pytest.raises(Refused, match="not an absolute path"):
        house.store.export(1, Path("out"))
    with pytest.raises(Refused, match="not a folder"):
        house.store.export(1, tmp_path / "no" / "where")
    flip(house.store.get(1).folder / "model.safetensors")
    with pytest.raises(Corrupt, match="does not match"):
        house.store.export(1, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".staging")]


def test_nothing_is_exported_into_the_workspace(house, tmp_path):
    house.store.create(house.checkpoint(100), "m")
    (tmp_path / "link").symlink_to(house.workspace.inbox)
    targets = (
        house.workspace.root / "shipped",
        house.workspace.versions / "v099_20261124",
        house.workspace.queue / "processing" / "0000000000000000-000001",
        house.workspace.inbox / "x",
        house.workspace.trash / "versions" / "x",
        house.workspace.state / ".." / "y",
        tmp_path / "link" / "x",
    )
    before = sorted(house.workspace.root.rglob("*"))
    for target in targets:
        with pytest.raises(Refused, match="inside the workspace") as refusal:
            house.store.export(1, target)
        assert str(house.workspace.root) in refusal.value.hint
    assert sorted(house.workspace.root.rglob("*")) == before


def test_a_file_of_a_version_can_be_fetched_by_name_and_by_no_path(house):
    house.store.create(house.checkpoint(100), "m")
    path, entry = house.store.file(1, "model.safetensors")
    assert hashing.hash_file(path) == entry.sha256
    for name in ("../../config.toml", "MANIFEST.json", "optimizer/optimizer.safetensors"):
        with pytest.raises(NotFound):
            house.store.file(1, name)


def test_descriptions_reach_no_terminal_raw(house):
    version = house.store.create(house.checkpoint(100), "evil \x1b[2J name")
    assert "\x1b" not in version.record.description


def test_versions_never_import_torch(tmp_path: Path):
    code = (
        "import sys, trainer_tui.versions.store, trainer_tui.versions.retention, "
        "trainer_tui.versions.backup; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_what_waits_for_its_checkpoint_is_lost_unless_what_one_goes_back_to_has_it_too(house):
    house.train_file("a.jsonl")
    house.store.create(house.checkpoint(100), "one")
    house.train_file("c.jsonl")
    house.store.create(house.checkpoint(200), "two")
    c = next(iter(manifest.ledger_entries(house.workspace.ledger, house.head)))
    assert house.store.lost_too(1, {99: "0" * 64}) == [99]
    assert house.store.lost_too(1, {c.job_id: c.file_sha256}) == [], "saved meanwhile: listed"
    house.store.restore(1)
    assert house.store.lost_too(2, {50: c.file_sha256, 51: c.file_sha256}) == [51]
    manifest.segment_path(house.workspace.ledger, house.head).unlink()
    assert house.store.lost_too(2, {50: "0" * 64}) == [], "nobody knows: that is told beside"
