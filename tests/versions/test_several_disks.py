"""A workspace on several disks: room is made on the one that is short, by what lies there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainer_tui.daemon import disk_watch
from trainer_tui.daemon.disk_watch import DiskWatch, Looked
from trainer_tui.safety import checkpoints, clock, disk, durable, filesystems
from trainer_tui.safety.config import Config
from trainer_tui.safety.disk import exclusive_bytes
from trainer_tui.safety.filesystems import Measured
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import check
from trainer_tui.versions.layout import Layout

PLENTY = 10**12


@dataclass
class Disks:
    """Measures as if some folders were disks of their own. `free`: what a disk has to begin with;
    what goes from it comes on top, unless it is `held` there."""

    root: Path
    free: dict[Path, int]
    held: set[Path] = field(default_factory=set)
    began: dict[Path, int] = field(default_factory=dict)

    def home(self, path: Path) -> Path:
        return max(place for place in self.free if path.is_relative_to(place))

    def used(self, home: Path) -> int:
        nested = [place for place in self.free if place != home and place.is_relative_to(home)]
        return exclusive_bytes(home) - sum(self.used(place) for place in nested)

    def __call__(self, path: Path) -> Measured:
        home = self.home(path)
        back = 0
        if home not in self.held:
            now = self.used(home)
            back = self.began.setdefault(home, now) - now
        device = 1 + sorted(self.free).index(home)
        return Measured(device, max(0, self.free[home] + back), PLENTY)


class Watched:
    """The disk's watch without a daemon around it."""

    def __init__(self, house, measuring: Callable[[Path], Measured]) -> None:
        self.said: list[tuple[str, str]] = []
        self.holds: dict[str, str] = {}
        training: Any = SimpleNamespace(holds=self.holds, poke=lambda: None)
        teller: Any = SimpleNamespace(
            say=lambda level, _, text, **__: self.said.append((level, text))
        )
        inbox: Any = SimpleNamespace(wake=lambda: None)
        settings: Any = SimpleNamespace(config=Config())
        desk: Any = None
        self.watch = DiskWatch(
            house.workspace, settings, desk, inbox, training, teller, set(), measuring
        )

    def round(self) -> Looked:
        found = self.watch.look()
        short = [one for one in found if one.short]
        looked = self.watch.make_room(short) if short else Looked(found, [], [], [])
        self.watch._tell(looked)
        return looked


def furnish(house) -> None:
    """Versions, optimizers, emergencies, a trash with a version and one with a job."""
    for step in range(100, 900, 100):
        house.train_file()
        house.store.create(house.checkpoint(step, elements=1 << 12), "")
    house.store.restore(8)
    house.store.restore(8)
    house.store.delete(2)
    thrown_job(house)


def thrown_job(house) -> Path:
    folder = house.workspace.trash / "job.failed.1"
    folder.mkdir()
    (folder / "data.jsonl").write_bytes(b"x" * 50_000)
    return folder


def everything(house) -> dict[str, Any]:
    versions = house.store.list()
    return {
        "checkpoints": [p.name for p in checkpoints.list_folders(house.workspace.current_model)],
        "versions": [version.name for version in versions],
        "whole": [version.name for version in versions if not version.weights_only],
        "emergencies": [entry.name for entry in house.store.emergencies()],
        "trash": [entry.note.name for entry in house.store.trashed()],
    }


def moved_trash(house) -> None:
    """As it lies where a rename cannot reach `state/`."""
    local = house.workspace.versions / ".trash"
    durable.rename(house.workspace.trash / "versions", local)


def test_a_short_root_disk_costs_nothing_of_what_lies_on_the_disk_of_the_models(house):
    furnish(house)
    moved_trash(house)
    before = everything(house)
    root, models = house.workspace.root, house.workspace.models
    watched = Watched(house, Disks(root, {root: 0, models: PLENTY}))
    looked = [watched.round() for _ in range(12)]
    assert everything(house) == before and len(before["trash"]) == 1
    assert [gone.what for one in looked for gone in one.freed] == ["job.failed.1"]
    assert watched.holds["disk"] == "the disk has 0.0 GB free, 50.0 GB are needed"
    assert all(check.prove_version(version.folder) for version in house.store.list())


def test_a_short_disk_of_the_models_is_freed_there_and_the_roots_keeps_what_it_has(house):
    furnish(house)
    moved_trash(house)
    root, models = house.workspace.root, house.workspace.models
    watched = Watched(house, Disks(root, {root: PLENTY, models: 0}))
    ballast = house.workspace.state / "ballast"
    ballast.write_bytes(b"x")
    assert [one.name for one in watched.watch.look() if one.short] == ["models"]
    looked = watched.round()
    assert looked.freed[0].what.startswith("the trash (v002")
    assert {gone.owner for gone in looked.freed} == {"versions"}
    assert looked.freed[0].bytes
    assert (house.workspace.trash / "job.failed.1").exists() and ballast.exists()
    assert house.store.trashed() == () and len(house.store.emergencies()) == 1
    assert watched.holds["disk"] == "the disk of models has 0.0 GB free, 50.0 GB are needed"
    assert watched.watch.preview()["place"] == "models"


def test_the_trash_of_another_disk_is_kept_when_versions_go_from_the_short_one(house):
    """A deleted version still lies in `state/`, and its days are not over."""
    furnish(house)
    root, models = house.workspace.root, house.workspace.models
    watched = Watched(house, Disks(root, {root: PLENTY, models: 0}))
    assert watched.round().freed
    assert [entry.note.name for entry in house.store.trashed()] != []


def test_versions_on_a_disk_of_their_own_go_alone_and_nobody_waits_for_it(house):
    furnish(house)
    here, root = house.workspace, house.workspace.root
    before = everything(house)
    watched = Watched(house, Disks(root, {root: PLENTY, here.versions: 0}))
    looked = [watched.round() for _ in range(3)]
    after = everything(house)
    assert looked[0].freed and len(after["versions"]) < len(before["versions"])
    for kind in ("checkpoints", "emergencies", "trash"):
        assert after[kind] == before[kind]
    assert watched.holds == {}
    words = "the disk of models/backups/consolidated has 0.0 GB free, 50.0 GB are needed"
    assert watched.said.count(("warning", words)) == 1


def test_deleting_without_effect_ends_and_begins_again_when_there_was_room(house):
    for step in range(100, 2600, 100):
        house.checkpoint(step)
    root, models = house.workspace.root, house.workspace.models
    disks = Disks(root, {root: PLENTY, models: 0}, held={models})
    watched = Watched(house, disks)
    looked = [watched.round() for _ in range(12)]
    assert sum(len(one.freed) for one in looked) == disk.WITHOUT_EFFECT_LIMIT
    [told] = [text for level, text in watched.said if "gave nothing back" in text]
    assert "the disk of models" in told
    disks.free[models] = PLENTY
    assert watched.round().freed == [] and watched.holds == {}
    disks.free[models] = 0
    assert len(watched.round().freed) == disk.WITHOUT_EFFECT_LIMIT


def test_what_would_go_is_listed_for_each_disk_with_its_place(house):
    furnish(house)
    moved_trash(house)
    root, models = house.workspace.root, house.workspace.models
    shown = Watched(house, Disks(root, {root: PLENTY, models: PLENTY - 1})).watch.preview()
    places = {(entry["owner"], entry["place"]) for entry in shown["would_go"]}
    assert places == {("trash", ""), ("versions", "models")}
    assert [entry["place"] for entry in shown["filesystems"]] == ["", "models"]
    saved = [entry["next_save_bytes"] for entry in shown["filesystems"]]
    assert saved[0] == 0 and saved[1] == shown["next_save_bytes"] > 0
    alone = Watched(house, Disks(root, {root: PLENTY})).watch.preview()
    assert {entry["place"] for entry in alone["would_go"]} == {""}
    assert len(alone["would_go"]) == len(shown["would_go"])


def test_the_ballast_is_kept_by_what_its_own_disk_has_free(house, monkeypatch):
    monkeypatch.setattr(disk_watch, "BALLAST_AFTER_S", -1.0)
    house.checkpoint(100)
    root, models = house.workspace.root, house.workspace.models
    ballast = house.workspace.state / "ballast"
    disks = Disks(root, {root: 0, models: PLENTY})
    watched = Watched(house, disks)
    watched.round()
    assert not ballast.exists()
    disks.free = {root: PLENTY, models: 0}
    for _ in range(2):
        watched.round()
        assert ballast.exists()


def test_a_disk_that_fills_is_told_by_its_name(house, monkeypatch):
    monkeypatch.setattr(disk_watch, "FORECAST_EVERY_S", 0.0)
    times = iter(range(0, 100_000, 100))
    monkeypatch.setattr(clock, "monotonic_s", lambda: float(next(times)))
    root, models = house.workspace.root, house.workspace.models
    disks = Disks(root, {root: PLENTY, models: PLENTY})
    watched = Watched(house, disks)
    for _ in range(4):
        disks.free[models] -= 10**10
        watched.round()
    [(level, text)] = watched.said
    assert level == "warning" and text.startswith("the disk of models is full in ")


def test_on_two_real_filesystems_only_the_short_one_loses_anything(on_two_filesystems, tmp_path):
    house = on_two_filesystems
    furnish(house)
    before = everything(house)
    short = tmp_path

    def measuring(path: Path) -> Measured:
        """Real but for the figures: what is short must not hang on this machine's disks."""
        found = filesystems.measure(path)
        free = 0 if found.device == short.stat().st_dev else PLENTY
        return Measured(found.device, free, PLENTY)

    looked = [Watched(house, measuring).round() for _ in range(3)]
    assert everything(house) == before
    assert [gone.what for one in looked for gone in one.freed] == ["job.failed.1"]
    memory = Path("/dev/shm")
    job, short = thrown_job(house), memory
    looked = [Watched(house, measuring).round()]
    assert everything(house) != before and job.exists()
    assert {gone.owner for gone in looked[0].freed} == {"versions"}
    assert Layout(Workspace(tmp_path / "ws")).versions.stat().st_dev == memory.stat().st_dev
