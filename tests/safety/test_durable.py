"""The promises of `safety.durable`: whole or not at all, in an order that survives a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from trainer_tui.safety import durable, hashing
from trainer_tui.safety.errors import is_damage


class Died(BaseException):
    pass


def steps_of(act) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    with durable.observed(lambda operation, path: seen.append((operation, path.name))):
        act()
    return seen


def die_before(index: int):
    left = index

    def observer(operation: str, path: Path) -> None:
        nonlocal left
        if left <= 0:
            raise Died
        left -= 1

    return observer


def test_replace_writes_then_syncs_then_renames_then_syncs_the_folder(tmp_path):
    steps = steps_of(lambda: durable.replace(tmp_path / "a", b"x"))
    assert [operation for operation, _ in steps] == ["create", "fsync", "rename", "fsync-dir"]
    assert steps[2][1] == "a" and steps[3][1] == tmp_path.name


@pytest.mark.parametrize("index", range(4))
def test_a_death_while_replacing_leaves_the_old_or_the_new(tmp_path, index):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(Died), durable.observed(die_before(index)):
        durable.replace(target, b"new" * 1000)
    assert target.read_bytes() == (b"new" * 1000 if index == 3 else b"old")


def test_a_reader_never_sees_half_a_replacement(tmp_path):
    target = tmp_path / "a"
    durable.replace(target, b"a" * 100_000)
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = target.read_bytes()
            if len(found) != 100_000 or len(set(found)) != 1:
                torn.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for letter in (b"b", b"c", b"d") * 10:
        durable.replace(target, letter * 100_000)
    stop.set()
    reader.join()
    assert torn == []


def test_a_failed_fsync_leaves_nothing_and_is_not_tried_again(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    tries = []

    def fail(operation: str, path: Path) -> None:
        if operation == "fsync":
            tries.append(path)
            raise OSError(errno.EIO, "injected")

    for act in (
        lambda: durable.replace(target, b"new"),
        lambda: durable.write_new(tmp_path / "b", b"new"),
        lambda: durable.write_new_hashed(tmp_path / "c", memoryview(b"n"), 0o600, print),
    ):
        with pytest.raises(OSError, match="injected"), durable.observed(fail):
            act()
    assert len(tries) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and target.read_bytes() == b"old"


def test_write_new_never_writes_through_a_name_that_is_taken(tmp_path):
    outside = tmp_path / "outside"
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "link", b"x")
    assert not outside.exists()
    durable.write_new(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_hashed_writes_give_the_hash_of_what_is_on_the_disk(tmp_path):
    data = os.urandom(3_000_001)
    moved: list[int] = []
    digest = durable.write_new_hashed(tmp_path / "a", memoryview(data), 0o400, moved.append)
    assert (tmp_path / "a").read_bytes() == data and sum(moved) == len(data)
    assert digest == hashlib.sha256(data).hexdigest() == hashing.hash_file(tmp_path / "a")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    copied = durable.copy_hashed(fd, tmp_path / "b")
    os.close(fd)
    assert copied == (digest, len(data)) and (tmp_path / "b").read_bytes() == data


@pytest.mark.parametrize("there", [0, 1, 1_000_000, 2_500_000])
def test_a_copy_goes_on_where_an_earlier_one_ended(tmp_path, there):
    data = os.urandom(2_500_000)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "target").write_bytes(data[:there])
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    digest, size = durable.copy_resumed(fd, tmp_path / "target")
    os.close(fd)
    assert size == len(data) and (tmp_path / "target").read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest()


def test_a_resumed_copy_on_a_wrong_beginning_has_another_hash(tmp_path):
    (tmp_path / "source").write_bytes(b"right and more")
    (tmp_path / "target").write_bytes(b"wrong")
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    digest, _ = durable.copy_resumed(fd, tmp_path / "target")
    os.close(fd)
    assert digest != hashing.hash_file(tmp_path / "source")
    assert digest == hashing.hash_file(tmp_path / "target")


def test_a_shared_file_outlives_its_first_name(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "a").chmod(0o400)
    how = durable.share(tmp_path / "a", tmp_path / "b")
    assert how in ("reflink", "link")
    (tmp_path / "a").unlink()
    assert (tmp_path / "b").read_bytes() == b"weights"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o400


def test_sharing_across_filesystems_is_a_verified_copy(tmp_path):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem; /dev/shm is none here")
    target = memory / f"trainer-tui-{os.getpid()}"
    (tmp_path / "a").write_bytes(b"weights")
    try:
        assert durable.share(tmp_path / "a", target) == "copy"
        assert target.read_bytes() == b"weights"
        with pytest.raises(FileExistsError):
            durable.share(tmp_path / "a", target)
    finally:
        target.unlink(missing_ok=True)


def test_directories_are_made_with_their_parents_each_durable(tmp_path):
    steps = steps_of(lambda: durable.make_directory(tmp_path / "a" / "b"))
    assert steps == [
        ("mkdir", "a"),
        ("fsync-dir", tmp_path.name),
        ("mkdir", "b"),
        ("fsync-dir", "a"),
    ]
    assert steps_of(lambda: durable.make_directory(tmp_path / "a" / "b")) == []


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_directory_that_cannot_be_made_is_an_error_not_a_silence(tmp_path, kind):
    if kind == "file":
        (tmp_path / "a").write_text("")
    else:
        (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        durable.make_directory(tmp_path / "a")


def test_staging_names_fit_however_long_the_name(tmp_path):
    for name in ("x" * 255, "é" * 127, "漢" * 85, "\udcff" * 200):
        path = tmp_path / name
        durable.replace(path, b"1")
        assert path.read_bytes() == b"1"


def test_the_sweep_takes_staging_names_only(tmp_path):
    (tmp_path / ".staging-a-1").write_text("")
    (tmp_path / ".staging-b-2").mkdir()
    (tmp_path / ".staging-b-2" / "inside").write_text("")
    (tmp_path / "kept").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".staging-link").symlink_to(tmp_path / "elsewhere")
    swept = durable.sweep_staging(tmp_path)
    assert len(swept) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "kept"]
    assert durable.sweep_staging(tmp_path / "missing") == []


def test_a_line_torn_by_a_power_cut_does_not_swallow_the_next(tmp_path):
    listing = tmp_path / "list"
    durable.append_line(listing, "one")
    with listing.open("ab") as stream:
        stream.write(b"tor")
    durable.append_line(listing, "two")
    assert listing.read_text().splitlines() == ["one", "tor", "two"]


def test_damage_is_told_from_want_of_room(tmp_path):
    assert is_damage(OSError(errno.EIO, ""))
    for number in (errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.ENOMEM):
        assert not is_damage(OSError(number, ""))


def test_observers_are_gone_after_their_block(tmp_path):
    with pytest.raises(Died), durable.observed(die_before(0)):
        durable.replace(tmp_path / "a", b"")
    durable.replace(tmp_path / "a", b"")


def test_the_order_of_system_calls_is_what_the_docstring_says(tmp_path):
    """Asked of the kernel, where strace is there to ask it."""
    script = (
        "from pathlib import Path; from trainer_tui.safety import durable; import sys;"
        "durable.replace(Path(sys.argv[1]) / 'a', b'x')"
    )
    import shutil
    import sys

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    filters = "trace=fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-o", str(log), "-e", filters, sys.executable, "-c", script]
    if subprocess.run([*command, str(tmp_path)], capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")
    calls = [line.split("(")[0].split()[-1] for line in log.read_text().splitlines() if "(" in line]
    assert calls == ["fsync", "rename", "fsync"]
