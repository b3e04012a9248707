"""Room is made in the owners' order, measured again after each, and links are not counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer_tui.safety import disk
from trainer_tui.safety.disk import Ballast, Offer, Tally


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
    freed = list(disk.reclaim(20, owners, lambda: room["free"]))
    assert [item.what for item in freed] == ["trash0", "trash1", "cache0"]
    assert room["free"] == 110


def test_deleting_links_that_free_nothing_ends_soon() -> None:
    room = {"free": 0}
    shelf = Shelf("linked", [5] * 100, room, real=False)
    freed = list(disk.reclaim(10, [shelf], lambda: room["free"]))
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


class Watch:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_deletions_without_effect_are_remembered_from_one_try_to_the_next() -> None:
    room, watch = {"free": 0}, Watch()
    shelf, tally = Shelf("held", [5] * 100, room, real=False), Tally(watch)

    def goes() -> int:
        return len(list(disk.reclaim(10, [shelf], lambda: room["free"], tally)))

    assert [goes() for _ in range(5)] == [disk.WITHOUT_EFFECT_LIMIT, 0, 0, 0, 0]
    for wait_s in (disk.TRY_AGAIN_S, 2 * disk.TRY_AGAIN_S, 4 * disk.TRY_AGAIN_S):
        watch.now_s += wait_s - 1
        assert goes() == 0
        watch.now_s += 1
        assert [goes(), goes()] == [1, 0], "one tries again, ever more seldom"


def test_a_single_try_that_has_an_effect_goes_on() -> None:
    room, watch = {"free": 0}, Watch()
    tally = Tally(watch)
    held = Shelf("held", [5] * 100, room, real=False)
    assert len(list(disk.reclaim(10, [held], lambda: room["free"], tally))) == 8
    watch.now_s = disk.TRY_AGAIN_S
    real = Shelf("real", [1] * 100, room)
    assert len(list(disk.reclaim(10, [real], lambda: room["free"], tally))) == 10


def test_bytes_that_come_back_late_count_as_an_effect() -> None:
    room, tally = {"free": 3}, Tally()
    shelf = Shelf("late", [5] * 100, room, real=False)
    assert len(list(disk.reclaim(100, [shelf], lambda: room["free"], tally))) == 8
    room["free"] = 22  # less than half of 8 * 5 came
    assert list(disk.reclaim(100, [shelf], lambda: room["free"], tally)) == []
    room["free"] = 23
    assert len(list(disk.reclaim(100, [shelf], lambda: room["free"], tally))) == 8


def test_what_went_is_told_though_the_next_one_fails() -> None:
    room = {"free": 0}

    def fails() -> None:
        raise OSError(5, "Input/output error")

    class Broken(Shelf):
        def offers(self) -> list[Offer]:
            return [*super().offers(), Offer("bad", "spare", 5, fails)]

    told = []
    with pytest.raises(OSError, match="Input/output"):
        for gone in disk.reclaim(100, [Broken("shelf", [5, 5], room)], lambda: room["free"]):
            told.append(gone.what)
    assert told == ["shelf0", "shelf1"]
