"""One thing on the shelf cannot be read: it is shown as that, and everything else goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints
from trainer_tui.safety.config import Config, Retention
from trainer_tui.safety.errors import Corrupt, Unreadable
from trainer_tui.versions import keeping

NOBODY = 65534
POLICY = Config(
    retention=Retention(
        checkpoints=1, versions=2, best_versions=0, daily_days=0, versions_with_optimizer=1
    )
)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


WAYS: list[Callable[[Path], None]] = [a_directory, a_loop]


def furnish(house) -> None:
    for step in (100, 200, 300, 400):
        house.train_file()
        house.store.create(house.checkpoint(step), "")


def everything_else_goes_on(house, number: int) -> None:
    """`number`: the version that cannot be read."""
    store = house.store
    found = {version.number: version for version in store.list()}
    assert {n: v.state for n, v in found.items() if n != number} == {4: "ok", 3: "ok", 2: "ok"}
    assert found[number].state == "unreadable" and "cannot be read" in found[number].problem
    proof = store.verify(number)
    assert not proof.ok and "cannot be read" in proof.problem
    assert not list(store.layout.damaged.glob("*")), "it may be readable later: no mark is kept"
    with pytest.raises(Corrupt, match="cannot be read"):
        store.restore(number)
    assert store.verify(3).ok and store.restore(3).number == 3
    store.create(house.newest().folder, "after")
    keeping.apply(house.workspace, POLICY)
    assert len(checkpoints.list_folders(house.workspace.current_model)) == 1
    assert found[number].folder.is_dir(), "it may be sound: retention leaves it"
    assert store.as_dict()["latest"] == 5 and store.show(4)["state"] == "ok"


@pytest.mark.parametrize("make", WAYS)
@pytest.mark.parametrize("name", ["VERSION.json", "MANIFEST.json", "optimizer/MANIFEST.json"])
def test_one_unreadable_record_stops_nothing_but_its_own_version(house, make, name):
    furnish(house)
    make(house.store.get(1).folder / name)
    if name.startswith("optimizer/"):  # a folder or a link is no manifest: it is weights only
        assert [v.weights_only for v in house.store.list()] == [False, False, False, True]
        assert house.store.restore(1).weights_only
    else:
        everything_else_goes_on(house, 1)


@pytest.mark.parametrize("make", WAYS)
def test_unreadable_branches_origins_and_marks_stop_nothing(house, make):
    furnish(house)
    house.store.restore(2)
    [kept] = house.store.emergencies()
    branch = house.store.layout.branches / "000001.json"
    house.store.layout.damaged.mkdir()
    mark = house.store.layout.damaged / f"{house.store.get(3).name}.json"
    mark.write_text("")
    a_loop(mark)
    for path in (branch, kept.folder / "ORIGIN.json"):
        make(path)
    assert [version.state for version in house.store.list()] == ["ok"] * 4
    assert house.store.emergencies()[0].origin is None
    assert house.store.restore(3).number == 3


@pytest.mark.parametrize("make", WAYS)
def test_an_unreadable_note_in_the_trash_stops_nothing(house, make):
    furnish(house)
    thrown = [house.store.delete(number, keep_days=7) for number in (1, 2)]
    make(thrown[0].folder.with_name(f"{thrown[0].folder.name}.note.json"))
    assert [entry.note.name for entry in house.store.trashed()] == [thrown[1].note.name]
    assert house.store.undelete(2).state == "ok" and house.store.restore(3).number == 3
    keeping.apply(house.workspace, POLICY)
    assert thrown[0].folder.is_dir(), "nobody knows how long it is to be kept"


@pytest.mark.parametrize("make", WAYS)
def test_training_goes_on_from_the_newest_checkpoint_that_can_be_read(house, make):
    folders = [house.checkpoint(step) for step in (100, 200, 300)]
    make(folders[2] / "MANIFEST.json")
    make(folders[1] / "config.json")
    newest = house.newest()
    assert newest.folder == folders[0] and len(newest.passed_over) == 2
    assert house.store.position().global_step == 100


@pytest.fixture
def as_nobody(build):
    """A house that belongs to somebody without root's rights; afterwards we are root again."""
    memory = Path("/dev/shm")
    if os.geteuid() != 0 or not os.access(memory, os.W_OK):
        pytest.skip("needs root, to be somebody else, and a place both may enter")
    with tempfile.TemporaryDirectory(dir=memory) as place:
        root = Path(place) / "house"
        house = build(root=root)
        furnish(house)
        shutil.chown(place, NOBODY)
        for path in root.rglob("*"):
            os.chown(path, NOBODY, NOBODY)
        os.chown(root, NOBODY, NOBODY)

        def begin() -> None:
            os.seteuid(NOBODY)

        try:
            yield house, begin
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["VERSION.json", "MANIFEST.json", "model.safetensors", "."])
def test_a_version_copied_by_root_is_shown_as_unreadable_and_the_rest_goes_on(as_nobody, name):
    house, become_nobody = as_nobody
    folder = house.store.get(1).folder
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()  # so that the checkpoint's own name stays readable
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.safetensors").chmod(0o444)
    os.chown(folder / name, 0, 0)
    (folder / name).chmod(0o700 if name == "." else 0o400)
    become_nobody()
    everything_else_goes_on(house, 1)


def test_training_goes_on_past_a_checkpoint_of_roots(as_nobody):
    house, become_nobody = as_nobody
    folder = house.checkpoint(500)
    os.chown(folder / "MANIFEST.json", 0, 0)
    become_nobody()
    assert house.newest().folder.name == "checkpoint-400"
    with pytest.raises(Unreadable):
        checkpoints.verify(folder)
