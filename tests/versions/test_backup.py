"""The second location: real copies, proven, resumable; and the way back from it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from trainer_tui.daemon.backups import Backups
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import Corrupt, NotFound, Refused
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import check, keeping
from trainer_tui.versions.backup import Backup


def copies(disk2: Path) -> dict[str, Path]:
    return {folder.name.split("_")[0]: folder for folder in disk2.glob("*/versions/v*")}


def test_a_backup_is_real_copies_that_verify_by_themselves(house, disk2):
    house.three_versions()
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
    house.three_versions()
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
    house.three_versions()
    flip(house.store.get(2).folder / "model.safetensors")
    run = Backup(house.workspace, disk2).run()
    assert sorted(copies(disk2)) == ["v001", "v003"]
    assert any("model.safetensors does not match" in problem for problem in run.problems)
    house.store.verify(2)
    assert any("is corrupt" in p for p in Backup(house.workspace, disk2).run().problems)


def test_a_damaged_version_is_brought_back_from_its_copy(house, disk2, flip):
    house.three_versions()
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
    house.three_versions()
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
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    (copies(disk2)["v002"] / "config.json").unlink()
    assert backup.status().missing == (house.store.get(2).name,)
    assert backup.run().copied == (house.store.get(2).name,)
    check.prove_version(copies(disk2)["v002"])
    assert len(list(disk2.glob("*/versions/.damaged-v002*"))) == 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "record changed": lambda copy: rewrite(copy / "VERSION.json", b'"2', b'"3'),
    "record gone": lambda copy: (copy / "VERSION.json").unlink(),
    "optimizer's file gone": lambda copy: (copy / "optimizer/optimizer.safetensors").unlink(),
    "optimizer's manifest gone": lambda copy: (copy / "optimizer/MANIFEST.json").unlink(),
    "optimizer gone": lambda copy: shutil.rmtree(copy / "optimizer"),
}


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.chmod(0o600)
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("how", DAMAGE)
def test_a_copy_of_which_any_part_is_damaged_does_not_count(house, disk2, how):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    DAMAGE[how](copies(disk2)["v001"])
    name = house.store.get(1).name
    status = backup.status()
    assert status.missing == (name,) and name not in status.copied
    assert backup.run().copied == (name,)
    check.prove_version(copies(disk2)["v001"])
    assert check.has_optimizer(copies(disk2)["v001"])
    assert backup.status().missing == () and backup.run().copied == ()


def test_a_copy_keeps_the_optimizer_that_was_let_go_here(house, disk2):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    shutil.rmtree(house.store.get(1).folder / "optimizer")
    assert backup.status().missing == () and len(backup.run().already) == 3
    assert check.has_optimizer(copies(disk2)["v001"])


@pytest.mark.parametrize("part", ["VERSION.json", "model.safetensors"])
def test_a_damaged_copy_is_refused_leaves_nothing_and_serves_once_repaired(
    house, disk2, flip, part
):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    flip(house.store.get(1).folder / "model.safetensors")
    assert not house.store.verify(1).ok
    copy = copies(disk2)["v001"]
    flip(copy / part)
    for _ in range(2):
        with pytest.raises(Corrupt):
            backup.fetch(1)
        assert list(house.workspace.versions.glob(".partial-*")) == []
        assert house.store.get(1).name in [version.name for version in house.store.list()]
    flip(copy / part)  # back
    assert backup.fetch(1).state == "ok"


def test_a_bad_record_of_an_earlier_try_is_replaced(house, disk2, flip):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    name = house.store.get(1).name
    flip(house.store.get(1).folder / "model.safetensors")
    house.store.verify(1)
    partial = house.workspace.versions / f".partial-{name}"
    partial.mkdir()
    (partial / "VERSION.json").write_text("{")
    assert backup.fetch(1).state == "ok"


@dataclass
class ThinsInTheMiddle:
    """Progress that lets retention go over the versions while an optimizer is copied."""

    workspace: Workspace
    thinned: list[str] = field(default_factory=list)

    def __call__(self, name: str, copied_bytes: int, bytes_in_all: int) -> None:
        if name.startswith("v001") and copied_bytes > bytes_in_all / 2 and not self.thinned:
            done = keeping.apply(self.workspace, Config())
            self.thinned = [act.path.name for act in done if act.action == "thin"]


@pytest.mark.parametrize("stop", [False, True], ids=["goes on", "next run"])
def test_an_optimizer_that_is_let_go_of_meanwhile_leaves_nothing_in_the_copy(house, disk2, stop):
    for step in (100, 200, 300):
        house.train_file()
        house.store.create(house.checkpoint(step, elements=1 << 20), str(step))
    retention = ThinsInTheMiddle(house.workspace)
    backup = Backup(house.workspace, disk2)
    run = backup.run(retention, lambda: stop and retention.thinned != [])
    assert house.store.get(1).name in retention.thinned
    assert run.problems == () and len(run.copied) == (2 if stop else 3)
    if stop:
        assert len(list(disk2.glob("*/versions/.partial-v001*/optimizer/*"))) == 1
        assert backup.run().copied == (house.store.get(1).name,)
    copy = copies(disk2)["v001"]
    assert not (copy / "optimizer").exists()
    check.prove_version(copy)
    assert backup.status().missing == ()


def read_back(folder: Path, stops: list[bool], monkeypatch) -> None:
    """Reading back anything in `folder` from now on adds to `stops`, so that it is told to stop."""
    real = check.verify_file

    def told_to_stop(place: Path, entry, should_stop=None) -> None:
        if place.is_relative_to(folder):
            assert should_stop is not None, "the hashing cannot be stopped"
            stops.append(True)
        real(place, entry, should_stop)

    monkeypatch.setattr(check, "verify_file", told_to_stop)


def test_a_stop_is_heard_while_a_copy_is_read_back(house, disk2, monkeypatch):
    house.three_versions()
    stops: list[bool] = []
    read_back(disk2, stops, monkeypatch)
    backup = Backup(house.workspace, disk2)
    assert backup.run(should_stop=lambda: bool(stops)).copied == ()
    assert backup.status().partial == (house.store.get(3).name,)
    monkeypatch.undo()
    assert len(backup.run().copied) == 3 and backup.status().partial == ()


def test_a_stop_is_heard_while_a_version_is_fetched(house, disk2, flip, monkeypatch):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    flip(house.store.get(1).folder / "model.safetensors")
    assert not house.store.verify(1).ok
    with pytest.raises(Refused, match="told to stop"):
        backup.fetch(1, lambda: True)
    stops: list[bool] = []
    read_back(house.workspace.versions, stops, monkeypatch)
    with pytest.raises(Refused, match="told to stop"):
        backup.fetch(1, lambda: bool(stops))
    monkeypatch.undo()
    assert house.store.get(1).state == "corrupt"
    assert backup.fetch(1).state == "ok"


def test_a_disk_that_goes_away_while_a_version_is_fetched_is_a_sentence(house, disk2, flip):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    flip(house.store.get(1).folder / "model.safetensors")
    house.store.verify(1)

    def unplug() -> bool:
        if disk2.exists():
            disk2.rename(disk2.with_name("unplugged"))
        return False

    with pytest.raises(Refused, match="went away in the middle"):
        backup.fetch(1, unplug)
    assert house.store.get(1).state == "corrupt"
    disk2.with_name("unplugged").rename(disk2)
    assert backup.fetch(1).state == "ok"


def test_the_end_of_the_daemon_ends_a_fetch(house, disk2, flip):
    house.three_versions()
    backup = Backup(house.workspace, disk2)
    backup.run()
    flip(house.store.get(1).folder / "model.safetensors")
    assert not house.store.verify(1).ok
    house.workspace.config_file.write_text(f'[versioning]\nsecond_location = "{disk2}"\n')
    settings = Settings(house.workspace)
    settings.load()
    came_back: list[int] = []

    async def fetched(number: int) -> None:
        came_back.append(number)

    async def fetch(*, ending: bool) -> None:
        backups = Backups(house.workspace, settings, cast(Teller, None), fetched)
        if ending:
            await backups.close()
        await backups.fetch(1)

    with pytest.raises(Refused, match="told to stop"):
        asyncio.run(fetch(ending=True))
    assert came_back == []
    asyncio.run(fetch(ending=False))
    assert came_back == [1]
