"""The process may die before any durable operation, and any of them may fail.

After each: the current model verifies and is the old one or the new one, every version that was
there is there and verifies, no number and no global step is used twice, and doing it again works.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_tui.safety import checkpoints, durable
from trainer_tui.safety.config import Config, Retention
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.versions import check, keeping, spare
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.layout import version_number
from trainer_tui.versions.store import VersionStore

MEMORY = Path("/dev/shm")
POLICY = Config(
    retention=Retention(
        checkpoints=2, versions=2, best_versions=0, daily_days=0, versions_with_optimizer=1
    )
)


@pytest.fixture
def place(tmp_path: Path):
    """A filesystem in memory, where there is one: the order of operations is the same there, and
    an fsync costs nothing."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="trainer-tui-", dir=MEMORY) as folder:
        yield Path(folder)


def furnish(house) -> None:
    """Three versions, a fourth checkpoint on top, one restore already behind."""
    house.train_file("a.jsonl")
    house.store.create(house.checkpoint(100), "one")
    house.train_file("b.jsonl")
    house.store.create(house.checkpoint(200), "two", keep_optimizer=False)
    house.store.create(house.checkpoint(300), "three")
    house.store.restore(3)
    house.checkpoint(400, lineage=1)


def newest_folder(store: VersionStore) -> Path:
    return checkpoints.list_folders(store.workspace.current_model)[0]


def second_disk(store: VersionStore) -> Path:
    place = store.workspace.root.parent / "disk2"
    place.mkdir(exist_ok=True)
    return place


def bring_back(store: VersionStore) -> None:
    damaged = store.workspace.versions / store.get(1).name
    (damaged / "config.json").unlink(missing_ok=True)
    Backup(store.workspace, second_disk(store)).fetch(1)


def across_mounts(act: Callable[[VersionStore], object]) -> Callable[[VersionStore], object]:
    """state/ is another mount of the same filesystem: only a rename into it tells."""

    def done(store: VersionStore) -> None:
        def refuse(operation: str, path: Path) -> None:
            if operation == "rename" and path.is_relative_to(store.workspace.trash):
                raise OSError(errno.EXDEV, "injected", str(path))

        with durable.observed(refuse):
            act(store)

    return done


ACTS: dict[str, Callable[[VersionStore], object]] = {
    "create": lambda store: store.create(newest_folder(store), "new"),
    "restore": lambda store: store.restore(1),
    "rollback": lambda store: store.rollback(),
    "restore-emergency": lambda store: store.restore_emergency(1),
    "delete": lambda store: store.delete(1),
    "undelete": lambda store: store.undelete(1),
    "pin": lambda store: store.pin(1),
    "thin": lambda store: keeping.thin(
        store.workspace, store.workspace.current_model / "checkpoint-100"
    ),
    "retention": lambda store: keeping.apply(store.workspace, POLICY),
    "room": lambda store: spare.make_room(
        store.workspace, Config(), 1 << 60, itertools.count().__next__
    ),
    "backup": lambda store: Backup(store.workspace, second_disk(store)).run(),
    "fetch": bring_back,
}
ACTS |= {f"{act}-across-mounts": across_mounts(ACTS[act]) for act in ("delete", "retention")}
MAY_MISS = {"delete": {1}, "undelete": {1}, "retention": {1}, "room": {1}, "fetch": {1}}
MAY_MISS |= {f"{act}-across-mounts": {1} for act in ("delete", "retention")}
BEFORE: dict[str, Callable[[VersionStore], object]] = {
    "undelete": lambda store: store.delete(1),
    "fetch": lambda store: Backup(store.workspace, second_disk(store)).run(),
}


class FailAt:
    """Observer: operation number `index` fails, the others do not; with `for_good`, every one
    from there on that would need a block of the disk."""

    def __init__(self, index: int, code: int = errno.EIO, *, for_good: bool = False) -> None:
        self.index, self.code, self.for_good = index, code, for_good
        self.count = 0

    def __call__(self, operation: str, path: Path) -> None:
        self.count += 1
        needs_room = operation in ("create", "mkdir", "share", "fsync")
        late = self.for_good and self.count > self.index and needs_room
        if late or (self.count == self.index + 1 and not self.for_good):
            raise OSError(self.code, f"injected before {operation}", str(path))


def operations_of(act: str, house) -> list[str]:
    seen: list[str] = []
    with durable.observed(lambda operation, path: seen.append(f"{operation} {path.name}")):
        ACTS[act](house.store)
    return seen


def assert_sound(house, act: str, before: checkpoints.Newest) -> None:
    """The promises, looked at by a process that knows nothing."""
    store = VersionStore(house.workspace)
    newest = checkpoints.newest_verified(house.workspace.current_model)
    assert newest is not None and newest.passed_over == ()
    if newest.folder != before.folder:
        assert newest.manifest.global_step == before.manifest.global_step + 1
        assert newest.manifest.parent, "a restored checkpoint says where it came from"
    else:
        assert newest.manifest == before.manifest
    numbers = [version.number for version in store.list()]
    assert len(numbers) == len(set(numbers))
    assert {1, 2, 3} - MAY_MISS.get(act, set()) <= set(numbers)
    for version in store.list():
        if not (act == "fetch" and version.number == 1):
            assert version.state == "ok", version.problem
            check.prove_version(version.folder)
    if 1 not in numbers:
        thrown = [version_number(entry.note.name) for entry in store.trashed()]
        assert act in ("fetch", "room") or 1 in thrown, "what left is in the trash"
    for entry in store.emergencies():
        checkpoints.verify(entry.folder)
    there = second_disk(store)
    for folder in there.glob("*/versions/v*"):
        check.prove_version(folder)


def repeat(house, act: str) -> None:
    """Doing it again works, and sweeps what was left behind."""
    try:
        ACTS[act](VersionStore(house.workspace))
    except TrainerTuiError:
        once = ("delete", "delete-across-mounts", "undelete", "thin", "fetch")
        assert act in once, "it had happened already"
        keeping.apply(house.workspace, Config())
    house.store.pin(2)
    assert house.left_overs() == []


def copy_with_links(source: Path, target: Path) -> None:
    """A tree whose hard links are hard links among each other again."""
    copied: dict[int, Path] = {}
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(mode=0o700)
        for name in names:
            path = Path(folder) / name
            first = copied.setdefault(path.stat().st_ino, here / name)
            if first == here / name:
                shutil.copy2(path, first)
            else:
                os.link(first, here / name)


class Street:
    """Houses that are alike: one is furnished, the others are copies of it (links kept)."""

    def __init__(self, build, act: str) -> None:
        self._build = build
        self._model = build()
        furnish(self._model)
        self._before = BEFORE.get(act, lambda store: None)
        self._place = self._model.workspace.root.parent
        self._built = 0

    def house(self):
        self._built += 1
        root = self._place / f"street{self._built}" / "house"
        root.parent.mkdir()
        copy_with_links(self._model.workspace.root, root)
        house = self._build(root=root)
        self._before(house.store)
        return house


@pytest.mark.parametrize("act", ACTS)
def test_a_death_before_any_durable_operation_loses_nothing(build, killed, kill_before, act):
    street = Street(build, act)
    count = len(operations_of(act, street.house()))
    assert count >= 2
    for index in range(count):
        house = street.house()
        before = house.newest()
        with pytest.raises(killed), durable.observed(kill_before(index)):
            ACTS[act](house.store)
        assert_sound(house, act, before)
        repeat(house, act)
        assert_sound(house, act, house.newest())


@pytest.mark.parametrize("act", ACTS)
def test_an_io_error_at_any_durable_operation_loses_nothing(build, act):
    street = Street(build, act)
    count = len(operations_of(act, street.house()))
    for index in range(0, count, 1 if count < 40 else 3):
        house = street.house()
        before = house.newest()
        with pytest.raises(OSError, match="injected"), durable.observed(FailAt(index)):
            ACTS[act](house.store)
        assert_sound(house, act, before)
        repeat(house, act)


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from trainer_tui.safety import durable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.store import VersionStore
import test_kills
left = int(sys.argv[4])
def die(operation, path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
with durable.observed(die):
    test_kills.ACTS[sys.argv[3]](VersionStore(Workspace(Path(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    ("act", "points"),
    [("restore", (0.2, 0.5, 0.95)), ("create", (0.6,)), ("retention", (0.3, 0.7))],
)
def test_kill_minus_nine_of_a_real_process_loses_nothing(build, act, points):
    rehearsal = build()
    furnish(rehearsal)
    count = len(operations_of(act, rehearsal))
    for point in points:
        house = build()
        furnish(house)
        before = house.newest()
        here = str(Path(__file__).parent)
        arguments = [here, str(house.workspace.root), act, str(int(count * point))]
        ended = subprocess.run([sys.executable, "-c", CHILD, *arguments], timeout=60)
        assert ended.returncode == -signal.SIGKILL
        assert_sound(house, act, before)
        repeat(house, act)


@pytest.mark.parametrize("act", ["create", "restore", "thin", "delete"])
def test_every_new_name_is_durable_before_it_is_relied_on(house, act):
    """Between a file's or link's creation and the rename that shows it, its folder is fsynced."""
    furnish(house)
    steps: list[tuple[str, Path]] = []
    with durable.observed(lambda operation, path: steps.append((operation, path))):
        ACTS[act](house.store)
    pending: set[Path] = set()
    source: Path | None = None
    for operation, path in steps:
        match operation:
            case "create" | "share" | "mkdir" | "rename":
                if operation == "rename" and source is not None:
                    hidden = {folder for folder in pending if folder.is_relative_to(source)}
                    assert hidden == set(), f"{hidden} not durable when {path} appeared"
                pending.add(path.parent)
                is_staged = path.name.startswith((".staging-", ".thinning-"))
                source = path if operation == "mkdir" and is_staged else source
            case "fsync-dir":
                pending.discard(path)
    assert pending == set()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A filesystem of 2 MB and few files; needs root to mount it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    try:
        with filler.open("wb", buffering=0) as stream:
            while stream.write(b"\0" * 4096):
                pass
    except OSError as problem:
        assert problem.errno == errno.ENOSPC
    return filler


@pytest.mark.parametrize("act", ["restore", "create", "delete", "pin"])
def test_a_full_disk_is_a_sentence_and_changes_nothing(build, small_disk, act):
    house = build(root=small_disk / "house")
    furnish(house)
    before = house.newest()
    shelf_before = house.store.list()
    filler = fill(small_disk)
    with pytest.raises(TrainerTuiError, match="the disk is full; nothing was changed"):
        ACTS[act](house.store)
    assert house.store.list() == shelf_before
    assert_sound(house, act, before)
    filler.unlink()
    ACTS[act](house.store)
    assert_sound(house, act, before)


@pytest.mark.parametrize("act", ["restore", "rollback", "restore-emergency", "create"])
def test_a_disk_that_fills_up_at_any_point_is_a_sentence_and_loses_nothing(build, act):
    """Also in the middle of the emergency backup, and after it: the current model is the old one,
    whole; and once there is room it works."""
    street = Street(build, act)
    operations = operations_of(act, street.house())
    if act != "create":
        names = [name for name in operations if "ORIGIN.json" in name or "e002" in name]
        assert len(names) > 3, "the emergency backup is among what is tried"
    for index in range(len(operations)):
        house = street.house()
        before, shelf_before = house.newest(), house.store.list()
        with durable.observed(FailAt(index, errno.ENOSPC, for_good=True)):
            try:
                ACTS[act](house.store)
            except TrainerTuiError as problem:
                assert "the disk is full" in problem.message and problem.hint
            else:
                continue  # what was left to do needed no room
        assert house.newest().manifest == before.manifest
        assert [v.name for v in house.store.list()] == [v.name for v in shelf_before]
        assert_sound(house, act, before)
        repeat(house, act)


def test_a_full_second_disk_stops_the_backup_and_the_next_goes_on(house, small_disk):
    folder = house.checkpoint(100, elements=150_000)
    for _ in range(3):
        house.store.create(folder, "", keep_optimizer=False)
    backup = Backup(house.workspace, small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 1_000_000)
    with pytest.raises(TrainerTuiError, match="disk is full"):
        backup.run()
    status = backup.status()
    assert len(status.copied) == 1 and len(status.missing) == 2 and len(status.partial) == 1
    filler.unlink()
    assert len(backup.run().copied) == 2
    assert backup.status().missing == ()
