"""Room is made on a disk without a single free byte, and what dies meanwhile is taken up again."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints, durable
from trainer_tui.safety.config import Config, Retention
from trainer_tui.versions import keeping, spare, trash
from trainer_tui.versions.check import Verified
from trainer_tui.versions.layout import Layout

ALL = Config(retention=Retention(checkpoints=20))


@contextlib.contextmanager
def without_a_byte(monkeypatch) -> Iterator[None]:
    """Nothing that takes a block of the disk succeeds until a tree was removed."""
    full = True

    def refuse(path: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def operation(name: str, path: Path) -> None:
        nonlocal full
        if name in ("create", "mkdir", "append"):
            refuse(path)
        if name == "remove-tree" and path.parent.name == "versions":
            full = False

    written = durable.replace_view

    def replace_view(path: Path, data: bytes, mode: int = 0o600) -> None:
        refuse(path)
        written(path, data, mode)

    monkeypatch.setattr(durable, "replace_view", replace_view)
    with durable.observed(operation):
        yield


def furnish(house) -> None:
    """Six checkpoints and a trash that was used before."""
    for step in (50, *range(100, 700, 100)):
        house.checkpoint(step, elements=1 << 16)
    keeping.apply(house.workspace, Config(retention=Retention(checkpoints=6)))
    house.store.layout.verified_cache.unlink()


def test_a_disk_without_a_byte_is_freed_by_what_the_policy_lets_go(house, monkeypatch):
    furnish(house)
    with without_a_byte(monkeypatch):
        measured = iter([0, 10])
        freed = spare.make_room(house.workspace, Config(), 10, lambda: next(measured))
    assert [entry.what for entry in freed] == ["checkpoint-100"]
    assert len(checkpoints.list_folders(house.workspace.current_model)) == 5
    assert house.left_overs() == []


def test_a_thinner_checkpoint_that_finds_no_room_is_made_once_there_is(house, monkeypatch):
    furnish(house)
    with without_a_byte(monkeypatch):
        measured = iter([0, 1, 2, 10])
        freed = spare.make_room(house.workspace, ALL, 10, lambda: next(measured))
    assert [entry.what for entry in freed] == [
        "checkpoint-100",
        "the optimizer of checkpoint-200",
        "the optimizer of checkpoint-300",
    ]
    assert house.left_overs() == []


def test_what_found_no_room_to_go_is_said_when_nothing_else_goes(house):
    furnish(house)
    for step in range(100, 500, 100):
        keeping.pin_checkpoint(house.workspace, f"checkpoint-{step}")
    house.checkpoint(700, elements=1 << 16)

    def operation(name: str, path: Path) -> None:
        if name != "fsync-dir":
            raise OSError(errno.ENOSPC, "not one byte", str(path))

    with durable.observed(operation), pytest.raises(OSError, match="not one byte"):
        spare.make_room(house.workspace, ALL, 10, lambda: 0)


def test_what_was_proven_is_hashed_once_though_it_cannot_be_written_down(house, monkeypatch):
    furnish(house)
    learned: list[Path] = []
    learn = Verified.learn

    def noted(self, path: Path, entry) -> None:
        learned.append(path)
        learn(self, path, entry)

    monkeypatch.setattr(Verified, "learn", noted)
    with without_a_byte(monkeypatch):
        spare.make_room(house.workspace, ALL, 3, itertools.count().__next__)
    assert learned and len(learned) == len(set(learned))


def test_what_died_half_gone_is_removed_first(house):
    furnish(house)
    layout = Layout(house.workspace)
    trash.discard(layout, house.workspace.current_model / "checkpoint-100")
    owner = spare.VersionsOwner(house.workspace, Config())
    expected = owner.preview()[0]
    assert (expected.what, expected.bytes > 500_000) == ("what was half gone", True)
    measured = iter([0, 10])
    [freed] = spare.make_room(house.workspace, Config(), 10, lambda: next(measured))
    assert freed.what == "the trash (what was half gone)" and house.left_overs() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "small", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("config", [Config(), ALL], ids=["by policy", "for space"])
def test_room_is_made_on_a_real_disk_that_is_full_to_the_last_byte(build, small_disk, config):
    house = build(root=small_disk / "house")
    for step in range(100, 900, 100):
        house.checkpoint(step, elements=1 << 16)
    with (small_disk / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    assert shutil.disk_usage(small_disk).free == 0
    freed = spare.make_room(house.workspace, config, 1 << 20)
    assert freed and shutil.disk_usage(small_disk).free >= 1 << 20
    assert house.newest().folder.name == "checkpoint-800" and house.left_overs() == []
