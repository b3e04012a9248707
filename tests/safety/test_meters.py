"""The machine's figures: whose disk they show when a workspace lies on several."""

from __future__ import annotations

from pathlib import Path

from trainer_tui.safety import filesystems
from trainer_tui.safety.filesystems import Measured
from trainer_tui.safety.meters import Meters

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
