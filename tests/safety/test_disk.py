"""Room is made in the owners' order, measured again after each, and links are not counted."""

from __future__ import annotations

import os
from pathlib import Path

from trainer_tui.safety import disk
from trainer_tui.safety.disk import Ballast, Offer


class Shelf:
    """An owner with things of a given size on a pretended disk."""

    def __init__(
        self, name: str, sizes: list[int], room: dict[str, int], real: bool = True
    ) -> None:
        self.name = name
        self._sizes = sizes
        self._room = room
        self._real = real

    def offers(self) -> list[Offer]:
        def free(size: int) -> None:
            self._room["free"] += size if self._real else 0

        return [
            Offer(f"{self.name}{index}", "spare", size, lambda size=size: free(size))
            for index, size in enumerate(self._sizes)
        ]


def test_small_disks_keep_their_share_and_large_ones_the_fixed_amount() -> None:
    assert disk.floor_bytes(100 * disk.GB, 50, 0.05) == 5 * disk.GB
    assert disk.floor_bytes(8000 * disk.GB, 50, 0.05) == 50 * disk.GB


def test_owners_are_asked_in_order_and_only_until_there_is_enough() -> None:
    room = {"free": 0}
    owners = [Shelf("trash", [5, 5], room), Shelf("cache", [100], room), Shelf("old", [100], room)]
    freed = disk.reclaim(20, owners, lambda: room["free"])
    assert [item.what for item in freed] == ["trash0", "trash1", "cache0"]
    assert room["free"] == 110


def test_deleting_links_that_free_nothing_ends_soon() -> None:
    room = {"free": 0}
    freed = disk.reclaim(10, [Shelf("linked", [5] * 100, room, real=False)], lambda: room["free"])
    assert len(freed) == disk.WITHOUT_EFFECT_LIMIT


def test_shared_files_are_not_exclusive(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "weights").write_bytes(b"x" * 100_000)
    (first / "own").write_bytes(b"x" * 50_000)
    os.link(first / "weights", second / "weights")
    assert 50_000 <= disk.exclusive_bytes(first) < 100_000
    (second / "weights").unlink()
    assert disk.exclusive_bytes(first) >= 150_000


def test_two_names_inside_one_folder_count_once_and_in_full(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a", tmp_path / "b")
    assert 100_000 <= disk.exclusive_bytes(tmp_path) < 200_000


def test_the_forecast_says_when_the_floor_is_reached() -> None:
    falling = disk.forecast(100, 40, 10, [(0.0, 160), (60.0, 100)])
    assert falling.seconds_left == 60.0
    assert falling.room_for_next_save
    assert not disk.forecast(45, 40, 10, []).room_for_next_save
    assert disk.forecast(100, 40, 10, [(0.0, 90), (60.0, 100)]).seconds_left is None


def test_ballast_is_really_allocated_and_really_given_up(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 1 << 20)
    assert ballast.put() and ballast.put()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 1 << 20
    ballast.give_up()
    assert not ballast.there
    ballast.give_up()
