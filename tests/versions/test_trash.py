"""What is let go really goes, wherever models/ and state/ lie."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from trainer_tui.safety import checkpoints
from trainer_tui.safety.config import Config, Retention
from trainer_tui.versions import keeping
from trainer_tui.versions.trash import Note

POLICY = Config(
    retention=Retention(
        checkpoints=1, versions=3, best_versions=0, daily_days=0, versions_with_optimizer=1
    )
)


@pytest.fixture
def on_two_mounts(build, tmp_path):
    """models/ is bound into the workspace, as a container's volume is: one device, two mounts."""
    outside, models = tmp_path / "volume", tmp_path / "ws" / "models"
    for folder in (outside, models):
        folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "--bind", str(outside), str(models)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield build(root=tmp_path / "ws")
    finally:
        subprocess.run(["umount", "-l", str(models)], check=True)


def optimizers(house) -> list[str]:
    found = Path(house.workspace.models).resolve().rglob("optimizer.safetensors")
    return sorted(path.parent.name.partition("--")[0] for path in found)


def test_thinned_optimizers_are_freed_on_another_filesystem(on_two_filesystems):
    house = on_two_filesystems
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    gone = keeping.apply(house.workspace, POLICY)
    assert [entry.action for entry in gone] == ["trash", "trash", "thin", "thin"]
    assert optimizers(house) == ["checkpoint-300", "optimizer"], "the newest of each"
    assert house.store.trashed() == ()
    assert not list(house.workspace.versions.glob("v*/.trash"))


def test_what_was_once_left_inside_versions_is_collected(house):
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    place = house.store.get(1).folder / ".trash"
    place.mkdir()
    shutil.move(house.store.get(1).folder / "optimizer", place / "optimizer--0a1b2c3d")
    note = Note("optimizer", "gone", "thinned", "2026-11-24T12:00:00.000Z", "")
    (place / "optimizer--0a1b2c3d.note.json").write_bytes(msgspec.json.encode(note))
    assert [entry.note.name for entry in house.store.trashed()] == ["optimizer"]
    keeping.apply(house.workspace, POLICY)
    assert not place.exists() and house.store.trashed() == ()
    assert house.store.verify(1).ok and house.store.get(1).weights_only


def test_delete_and_retention_work_on_a_volume_bound_into_the_workspace(on_two_mounts):
    house = on_two_mounts
    for step in (100, 200, 300, 400, 500):
        house.store.create(house.checkpoint(step), "")
    house.store.delete(1)
    assert [entry.note.name[:4] for entry in house.store.trashed()] == ["v001"]
    assert house.store.undelete(1).state == "ok" and house.store.verify(1).ok
    keeping.apply(house.workspace, POLICY)
    assert len(checkpoints.list_folders(house.workspace.current_model)) == 1
    assert [version.number for version in house.store.list()] == [5, 4, 3]
    assert optimizers(house) == ["checkpoint-500", "optimizer", "optimizer", "optimizer"]
    keeping.purge(house.store.layout, "2026-11-24T12:00:00.000Z", everything=True)
    assert optimizers(house) == ["checkpoint-500", "optimizer"]
    assert not list((house.workspace.trash / "versions").iterdir()), "no note of nothing either"
