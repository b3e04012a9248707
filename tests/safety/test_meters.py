"""The machine's figures: whose disk they show, and the load whoever asks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from trainer_tui.safety import filesystems
from trainer_tui.safety.filesystems import Measured
from trainer_tui.safety.meters import Load, Meters

ROOT = Measured(1, 500, 1000)


def models_on(disk: Measured, root: Path) -> filesystems.Measure:
    return lambda path: disk if path.is_relative_to(root / "models") else ROOT


def test_the_disk_shown_is_the_one_with_the_least_room(tmp_path: Path) -> None:
    full = models_on(Measured(2, 3, 90), tmp_path)
    machine = Meters(tmp_path, measuring=full).sample()
    assert machine.disk_place == "models"
    assert (machine.disk_free_bytes, machine.disk_used_bytes, machine.disk_total_bytes) == (
        3, 87, 90,
    )  # fmt: skip
    roomy = models_on(Measured(2, 8000, 9000), tmp_path)
    machine = Meters(tmp_path, measuring=roomy).sample()
    assert (machine.disk_place, machine.disk_free_bytes) == ("", 500)


def test_what_has_to_stay_free_decides_which_disk_is_the_tight_one(tmp_path: Path) -> None:
    big = models_on(Measured(2, 600, 90_000), tmp_path)
    assert Meters(tmp_path, lambda total: 0, big).sample().disk_place == ""
    assert Meters(tmp_path, lambda total: total // 100, big).sample().disk_place == "models"


def test_a_disk_that_cannot_be_asked_costs_no_figure_of_the_others(tmp_path: Path) -> None:
    def measuring(path: Path) -> Measured:
        if path.is_relative_to(tmp_path / "models"):
            raise OSError("Input/output error")
        return ROOT

    assert Meters(tmp_path, measuring=measuring).sample().disk_free_bytes == 500


def test_the_figures_of_this_machine_are_whole(tmp_path: Path) -> None:
    machine = Meters(tmp_path).sample()
    assert machine.disk_place == ""
    assert machine.disk_used_bytes + machine.disk_free_bytes == machine.disk_total_bytes > 0


def test_the_load_is_that_since_the_last_look_whichever_thread_looks(tmp_path: Path) -> None:
    meters = Meters(tmp_path)
    for _ in range(3):
        busy_until_s = time.process_time() + 0.2
        while time.process_time() < busy_until_s:
            pass
        with ThreadPoolExecutor(1) as fresh:
            machine = fresh.submit(meters.sample).result()
        # Alone on its core, or sharing it with others who are busy.
        assert machine.load_percent > 50 / machine.cores
    assert machine.load_percent <= 100


def test_a_figure_that_fell_is_no_load_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux: the time spent waiting for a disk may fall."""
    times = psutil.cpu_times()
    load = Load()
    later = times._replace(idle=times.idle + 2000, iowait=times.iowait + 1000, user=times.user)
    monkeypatch.setattr(psutil, "cpu_times", lambda: later)
    assert load.percent() < 50
    again = later._replace(iowait=later.iowait - 500, user=later.user + 501)
    monkeypatch.setattr(psutil, "cpu_times", lambda: again)
    assert load.percent() == 100
    assert load.percent() == 100, "nothing passed: as before"
