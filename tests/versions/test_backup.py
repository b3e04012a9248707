"""The second location: real copies, proven, resumable; and the way back from it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.errors import NotFound, Refused
from trainer_tui.versions import check
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.copying import copy_folder

NOBODY = 65534  # the overflow user, who owns nothing


@pytest.fixture
def disk2(tmp_path: Path) -> Path:
    place = tmp_path / "disk2"
    place.mkdir()
    return place


def three_versions(house) -> None:
    for step in (100, 200, 300):
        house.train_file()
        house.store.create(house.checkpoint(step), str(step))


def copies(disk2: Path) -> dict[str, Path]:
    return {folder.name.split("_")[0]: folder for folder in disk2.glob("*/versions/v*")}


def test_a_backup_is_real_copies_that_verify_by_themselves(house, disk2):
    three_versions(house)
    run = Backup(house.workspace, disk2).run()
    assert [name.split("_")[0] for name in run.copied] == ["v003", "v002", "v001"]
    assert run.problems == () and run.bytes > 0
    for number, folder in copies(disk2).items():
        check.prove_version(folder)
        assert all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file())
        assert check.has_optimizer(folder), number
    segments = list(disk2.glob("*/ledger/*.json"))
    assert len(segments) == 3


def test_the_second_run_copies_only_what_is_new(house, disk2):
    three_versions(house)
    backup = Backup(house.workspace, disk2)
    backup.run()
    house.store.create(house.checkpoint(400), "four")
    assert backup.status().missing == (house.store.get(4).name,)
    run = backup.run()
    assert len(run.copied) == 1 and len(run.already) == 3
    status = backup.status()
    assert status.missing == () and status.reachable and status.same_disk
    assert status.last_run_at
    json.dumps(status.as_dict() | run.as_dict())


def test_an_interrupted_copy_goes_on_where_it_ended(house, disk2):
    house.store.create(house.checkpoint(100, elements=1 << 20), "big")
    backup = Backup(house.workspace, disk2)
    asked = iter([False] * 4 + [True])  # in the middle of the weights
    assert backup.run(should_stop=lambda: next(asked)).copied == ()
    (name,) = backup.status().partial
    partial = next(disk2.glob(f"*/versions/.partial-{name}"))
    weights = partial / "model.safetensors"
    whole = (house.store.get(1).folder / "model.safetensors").read_bytes()
    assert 0 < weights.stat().st_size < len(whole)
    started = weights.stat().st_ino
    told: list[tuple[str, int, int]] = []
    assert backup.run(lambda *what: told.append(what)).copied == (name,)
    done = copies(disk2)["v001"] / "model.safetensors"
    assert done.stat().st_ino == started and done.read_bytes() == whole
    assert told[-1][1] == told[-1][2] == house.store.get(1).bytes


def test_a_wrong_beginning_is_thrown_away_not_built_upon(house, disk2):
    house.store.create(house.checkpoint(100), "v")
    backup = Backup(house.workspace, disk2)
    backup.run(should_stop=lambda: True)
    name = house.store.get(1).name
    partial = next(disk2.glob("*/versions")) / f".partial-{name}"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"not the beginning of it")
    assert backup.run().copied == (name,)
    check.prove_version(copies(disk2)["v001"])


def test_a_corrupt_version_is_named_and_not_copied(house, disk2, flip):
    three_versions(house)
    flip(house.store.get(2).folder / "model.safetensors")
    run = Backup(house.workspace, disk2).run()
    assert sorted(copies(disk2)) == ["v001", "v003"]
    assert any("model.safetensors does not match" in problem for problem in run.problems)
    house.store.verify(2)
    assert any("is corrupt" in p for p in Backup(house.workspace, disk2).run().problems)


def test_an_unmounted_disk_is_not_mistaken_for_an_empty_one(house, disk2):
    three_versions(house)
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
    three_versions(house)
    place = {
        "relative": Path("backups"),
        "inside": house.workspace.state,
        "missing": tmp_path / "nowhere",
    }[where]
    with pytest.raises(Refused, match="no backup was made"):
        Backup(house.workspace, place).run()
    assert not Backup(house.workspace, place).status().reachable


def test_a_damaged_version_is_brought_back_from_its_copy(house, disk2, flip):
    three_versions(house)
    backup = Backup(house.workspace, disk2)
    backup.run()
    with pytest.raises(Refused, match="here and sound"):
        backup.fetch(2)
    flip(house.store.get(2).folder / "model.safetensors")
    assert not house.store.verify(2).ok
    assert backup.fetch(2).state == "ok"
    assert house.store.verify(2).ok
    assert house.store.restore(2).number == 2
    with pytest.raises(NotFound):
        backup.fetch(9)


def test_after_a_disk_died_everything_comes_back_from_the_second_one(house, disk2):
    three_versions(house)
    for _ in range(2):
        house.store.create(house.workspace.current_model / "checkpoint-300", "")
    backup = Backup(house.workspace, disk2)
    backup.run()
    shutil.rmtree(house.workspace.models)
    house.workspace.prepare()
    for number in (1, 2, 3):
        backup.fetch(number)
    done = house.store.restore(3)
    newest = house.newest()
    assert newest.folder == done.folder and not newest.manifest.weights_only
    entries = list(manifest.ledger_entries(house.workspace.ledger, newest.manifest.ledger))
    assert [entry.job_id for entry in entries] == [3, 2, 1]
    assert house.store.create(done.folder, "new").number == 6  # never 4 or 5 again
    checkpoints.verify(newest.folder)


def test_a_copy_that_went_bad_is_set_aside_and_copied_anew(house, disk2):
    three_versions(house)
    backup = Backup(house.workspace, disk2)
    backup.run()
    (copies(disk2)["v002"] / "config.json").unlink()
    assert backup.status().missing == (house.store.get(2).name,)
    assert backup.run().copied == (house.store.get(2).name,)
    check.prove_version(copies(disk2)["v002"])
    assert len(list(disk2.glob("*/versions/.damaged-v002*"))) == 1


def mounted(place: Path) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")


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
    three_versions(house)
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
    three_versions(house)
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
    three_versions(house)
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
    three_versions(house)
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
    three_versions(house)
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
        three_versions(house)
        backup = Backup(house.workspace, disk2)
        backup.run()
        flip(house.store.get(1).folder / "model.safetensors")
        assert not house.store.verify(1).ok
        assert backup.fetch(1).state == "ok"
        assert house.store.verify(1).ok
        assert list(large.glob(".partial-*")) == []
    finally:
        subprocess.run(["umount", "-l", str(large)], check=True)
