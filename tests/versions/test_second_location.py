"""The place of the copies: known again, never mistaken for another, never filled unmounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_tui.safety.errors import Refused
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.copying import copy_folder

NOBODY = 65534  # the overflow user, who owns nothing


def mounted(place: Path) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")


def test_an_unmounted_disk_is_not_mistaken_for_an_empty_one(house, disk2):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    away = disk2.with_name("unplugged")
    disk2.rename(away)
    assert "mounted" in backup.status().problem
    disk2.mkdir()  # the bare mount point
    with pytest.raises(Refused, match="no longer holds"):
        backup.run()
    assert list(disk2.iterdir()) == []
    assert len(backup.run(start_over=True).copied) == 3


@pytest.mark.parametrize("where", ["relative", "inside", "missing"])
def test_a_location_that_cannot_serve_is_a_sentence(house, tmp_path, where):
    house.three_versions()
    place = {
        "relative": Path("backups"),
        "inside": house.workspace.state,
        "missing": tmp_path / "nowhere",
    }[where]
    with pytest.raises(Refused, match="no backup was made"):
        Backup(house.workspace, place).run()
    assert not Backup(house.workspace, place).status().reachable


class GoesAway:
    """Progress that lets the disk go in the middle of the second version."""

    def __init__(self, go: Callable[[], object]) -> None:
        self.go = go
        self.names: list[str] = []

    def __call__(self, name: str, copied_bytes: int, bytes_in_all: int) -> None:
        if name not in self.names:
            self.names.append(name)
            if len(self.names) == 2:
                self.go()


def test_a_disk_that_goes_away_in_the_middle_is_noticed_not_filled(house, disk2):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    away = disk2.with_name("unplugged")

    def go() -> None:
        disk2.rename(away)
        disk2.mkdir()  # the bare mount point

    with pytest.raises(Refused, match="went away in the middle"):
        backup.run(GoesAway(go))
    assert list(disk2.iterdir()) == []
    assert not backup.status().reachable
    with pytest.raises(Refused, match="no longer holds"):
        backup.run()
    assert list(disk2.iterdir()) == []
    disk2.rmdir()
    away.rename(disk2)
    assert [name.split("_")[0] for name in backup.run().copied] == ["v002", "v001"]
    assert backup.status().missing == ()


def test_copies_that_lie_under_the_mount_point_are_not_mistaken_for_the_disk(house, disk2):
    """They were made by hand, or by an earlier run with nothing mounted."""
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run(should_stop=lambda: True)
    (home,) = disk2.iterdir()
    held = disk2.with_name("held")
    shutil.copytree(home, held)
    mounted(disk2)
    try:
        shutil.copytree(held, disk2 / home.name)
        unmount = ["umount", "-l", str(disk2)]
        with pytest.raises(Refused, match="went away in the middle"):
            backup.run(GoesAway(lambda: subprocess.run(unmount, check=True)))
    finally:
        if os.path.ismount(disk2):
            subprocess.run(["umount", "-l", str(disk2)], check=True)
    assert list((home / "versions").iterdir()) == []


def test_a_folder_of_ours_without_its_note_is_not_written_to(house, disk2):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    (note,) = disk2.glob("*/WORKSPACE")
    note.unlink()
    assert "no longer holds" in backup.status().problem
    with pytest.raises(Refused, match="no longer holds"):
        backup.run()


def test_a_copy_makes_no_folder_above_itself(house, disk2):
    version = house.store.create(house.checkpoint(100), "v")
    gone = disk2 / "house-0" / "versions" / ".partial-v001"
    with pytest.raises(FileNotFoundError):
        copy_folder(version.folder, gone, None, lambda: False)
    assert list(disk2.iterdir()) == []


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root may read everything: then the block runs as another user, who is given `folder`."""
    if os.geteuid() != 0:
        yield
        return
    try:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, -1)
        os.seteuid(NOBODY)
    except OSError as problem:
        pytest.skip(f"there is no other user here: {problem}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Unlike `tmp_path`, below no folder that other users may not pass."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_fresh_disk_with_a_folder_of_roots_serves(build, open_place):
    house = build(root=open_place / "house")
    house.three_versions()
    disk = open_place / "fresh"
    disk.mkdir()
    with as_nobody(open_place):
        (disk / "lost+found").mkdir(mode=0)
        backup = Backup(house.workspace, disk)
        assert backup.status().problem == ""
        assert len(backup.run().copied) == 3
        house.workspace.models.joinpath("backups", "second_location.json").unlink()
        assert len(Backup(house.workspace, disk).run().already) == 3


def test_a_location_that_may_not_be_read_is_a_sentence(build, open_place):
    house = build(root=open_place / "house")
    house.three_versions()
    with as_nobody(open_place):
        closed = open_place / "closed"
        closed.mkdir(mode=0)
        assert "cannot be read" in Backup(house.workspace, closed).status().problem
        with pytest.raises(Refused, match="cannot be read"):
            Backup(house.workspace, closed).run()


def test_a_version_comes_back_to_a_disk_of_its_own(house, disk2, tmp_path, flip):
    """The versions' folder may be a link to another disk than the rest of the workspace."""
    large = tmp_path / "large"
    large.mkdir()
    mounted(large)
    try:
        house.workspace.versions.rmdir()
        house.workspace.versions.symlink_to(large)
        house.three_versions()
        backup = Backup(house.workspace, disk2)
        backup.run()
        flip(house.store.get(1).folder / "model.safetensors")
        assert not house.store.verify(1).ok
        assert backup.fetch(1).state == "ok"
        assert house.store.verify(1).ok
        assert list(large.glob(".partial-*")) == []
    finally:
        subprocess.run(["umount", "-l", str(large)], check=True)
