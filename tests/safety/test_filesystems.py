"""Each filesystem of a workspace counts by itself: what it needs, who waits, how it is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer_tui.safety import filesystems
from trainer_tui.safety.filesystems import Filesystem, Measured
from trainer_tui.safety.workspace import Workspace

ROOT = Workspace(Path("/somewhere"))


def disks(*mounts: tuple[Path, int, int]):
    """Measures as if each (place, free, total) were a filesystem; the innermost one counts."""

    def measuring(path: Path) -> Measured:
        device, free, total = max(
            (len(place.parts), free, total)
            for place, free, total in mounts
            if path.is_relative_to(place)
        )
        return Measured(device, free, total)

    return measuring


def surveyed(*mounts: tuple[Path, int, int], save: int = 0, histories=None) -> list[Filesystem]:
    return filesystems.survey(
        ROOT, disks(*mounts), lambda total: total // 10, save, histories or {}
    )


def test_one_disk_is_one_filesystem_without_a_name_of_its_own() -> None:
    [only] = surveyed((ROOT.root, 500, 1000), save=70)
    assert (only.name, only.words, only.awaited) == ("", "the disk", True)
    assert only.needed_bytes == 170 and not only.short
    assert ROOT.versions in only.places and ROOT.state in only.places


def test_a_save_needs_room_where_checkpoints_are_written_and_nowhere_else() -> None:
    home, models = surveyed((ROOT.root, 150, 1000), (ROOT.models, 150, 1000), save=100)
    assert [one.words for one in (home, models)] == ["the disk", "the disk of models"]
    assert (home.needed_bytes, models.needed_bytes) == (100, 200)
    assert not home.short and models.short
    assert ROOT.versions in models.places and ROOT.versions not in home.places


def test_training_waits_for_no_disk_that_only_versions_lie_on() -> None:
    found = surveyed((ROOT.root, 500, 1000), (ROOT.versions, 0, 1000))
    assert [(one.name, one.short, one.awaited) for one in found] == [
        ("", False, True),
        ("models/backups/consolidated", True, False),
    ]
    assert filesystems.waited_for(found, ()) == []


def test_waiting_begins_at_the_floor_and_ends_well_above_it_for_each_disk_alone() -> None:
    def waiting(home: int, models: int, before: set[str]) -> list[str]:
        found = surveyed((ROOT.root, home, 1000), (ROOT.models, models, 1000))
        devices = {one.device for one in found if one.name in before}
        return [one.name for one in filesystems.waited_for(found, devices)]

    assert waiting(100, 100, set()) == []
    assert waiting(105, 99, set()) == ["models"]
    assert waiting(105, 109, {"models"}) == ["models"], "the root's disk never began to wait"
    assert waiting(105, 110, {"models"}) == []


def test_the_tightest_and_the_soonest_are_found() -> None:
    mounts = (ROOT.root, 400, 1000), (ROOT.models, 350, 1000)
    devices = [one.device for one in surveyed(*mounts)]
    falling = {devices[0]: [(0.0, 700), (60.0, 400)], devices[1]: [(0.0, 350), (60.0, 350)]}
    found = surveyed(*mounts, histories=falling)
    assert filesystems.tightest(found).name == "models"
    assert filesystems.soonest_s(found) == 60.0
    assert filesystems.soonest_s(surveyed(*mounts)) is None


def test_what_is_missing_is_measured_where_it_would_be_made(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("/nowhere/at/all")
    for path in (tmp_path, tmp_path / "a" / "b", tmp_path / "gone" / "c"):
        assert filesystems.measure(path).device == tmp_path.stat().st_dev


def test_a_link_to_another_filesystem_is_measured_there(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem; /dev/shm is none here")
    (tmp_path / "models").symlink_to(memory)
    workspace = Workspace(tmp_path)
    found = filesystems.survey(workspace, filesystems.measure, lambda total: 0, 0, {})
    assert [one.name for one in found] == ["", "models"]
    assert filesystems.beside(tmp_path / "models")(memory)
    assert not filesystems.beside(tmp_path)(memory)
