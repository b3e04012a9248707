"""The inbox: taken after the writer closed it, never before; only plain files; nothing lost."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from trainer_tui.data.row_reader import Limits
from trainer_tui.queue.intake import Busy, Inbox, copy_into, open_source, source_of
from trainer_tui.queue.job import Job, Meta, names_of
from trainer_tui.queue.originals import TAKEN_PREFIX, recover, remove_original
from trainer_tui.queue.report_context import build
from trainer_tui.queue.staging import Order, stage
from trainer_tui.queue.store import Queue
from trainer_tui.safety import durable, hashing
from trainer_tui.safety.errors import DataProblem, Refused
from trainer_tui.safety.workspace import Workspace


@pytest.fixture
def staged(workspace: Workspace) -> Iterator[Path]:
    folder = workspace.queue / ".staging-test"
    folder.mkdir()
    yield folder


def ready(inbox: Inbox, now_s: float) -> list[str]:
    return [candidate.path.name for candidate in inbox.look(now_s).ready]


def leases_work(folder: Path) -> bool:
    path = folder / "probe"
    path.touch()
    with path.open("rb") as stream:
        try:
            fcntl.fcntl(stream.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return False
    return True


def test_a_file_is_ready_when_it_looks_the_same_a_second_later(workspace: Workspace) -> None:
    inbox = Inbox(workspace)
    path = workspace.inbox / "a.jsonl"
    path.write_text("1")
    assert ready(inbox, 0.0) == []
    path.write_text("12")
    assert ready(inbox, 1.0) == []
    assert ready(inbox, 1.9) == []
    assert ready(inbox, 2.0) == ["a.jsonl"]
    path.unlink()
    path.write_text("12")
    os.utime(path, ns=(1, 1))
    assert ready(inbox, 2.5) == []


def test_folders_set_priorities_and_unfinished_names_are_left_alone(workspace: Workspace) -> None:
    for name in ("a.jsonl", "high/b", "low/c", ".hidden", "d.part", "e.tmp", "f~", "high/.x"):
        (workspace.inbox / name).write_text("x")
    inbox = Inbox(workspace)
    inbox.look(0.0)
    found = [(one.path.name, one.priority) for one in inbox.look(1.0).ready]
    assert found == [("b", "high"), ("a.jsonl", "normal"), ("c", "low")]


def test_what_is_no_plain_file_is_said_once_and_never_opened(workspace: Workspace) -> None:
    (workspace.inbox / "folder").mkdir()
    (workspace.inbox / "link").symlink_to("/etc/hostname")
    os.mkfifo(workspace.inbox / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(workspace.inbox)
    listener.bind("socket")
    os.chdir(here)
    inbox = Inbox(workspace)
    first = inbox.look(0.0)
    assert not first.ready and len(first.odd) == 4
    assert any("link is a symbolic link" in text for text in first.odd)
    assert not inbox.look(5.0).odd and not inbox.look(9.0).ready
    for name in ("folder", "link", "pipe", "socket"):
        with pytest.raises(Refused):
            open_source(workspace.inbox / name)
    listener.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_another_users_file_and_a_device_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    """A hard link carries the rights of its file: it may be one that only we can read."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"secret\n")
    os.chown(theirs, 12345, 12345)
    (workspace.inbox / "link.jsonl").hardlink_to(theirs)
    os.mknod(workspace.inbox / "null.jsonl", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(workspace.inbox / "disk.jsonl", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    inbox = Inbox(workspace)
    said = inbox.look(0.0).odd
    assert len(said) == 3 and not inbox.look(9.0).ready
    for name, reason in (("link", "hard link"), ("null", "not a plain"), ("disk", "not a plain")):
        with pytest.raises(Refused, match=reason):
            open_source(workspace.inbox / f"{name}.jsonl")
    assert theirs.read_bytes() == b"secret\n"
    ours = tmp_path / "ours"
    ours.write_bytes(b"fine\n")
    (workspace.inbox / "ours.jsonl").hardlink_to(ours)
    os.close(open_source(workspace.inbox / "ours.jsonl"))


def test_a_writer_that_breaks_the_lease_does_not_end_the_process(workspace: Workspace) -> None:
    """SIGIO, whose default action ends a process, comes to whoever holds a lease that is broken."""
    path = workspace.inbox / "a.jsonl"
    path.write_bytes(b"fine\n")
    if not leases_work(workspace.root):
        pytest.skip("no leases on this filesystem")
    code = (
        "import contextlib, os, sys, time; from pathlib import Path\n"
        "from trainer_tui.queue.intake import open_source\n"
        "from trainer_tui.safety.errors import Refused\n"
        "end = time.monotonic() + 1.5; taken = busy = 0\n"
        "while time.monotonic() < end:\n"
        "    try: os.close(open_source(Path(sys.argv[1]))); taken += 1\n"
        "    except Refused: busy += 1\n"
        "print(taken, busy)\n"
    )
    command = (sys.executable, "-c", code, str(path))
    reader = subprocess.Popen(command, stdout=subprocess.PIPE)
    while reader.poll() is None:
        with contextlib.suppress(BlockingIOError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    assert reader.stdout is not None
    assert reader.returncode == 0, "ended by a signal"
    taken, busy = map(int, reader.stdout.read().split())
    assert taken and busy, "the two never met"


def test_a_symlinked_inbox_folder_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("x")
    (workspace.inbox / "high").rmdir()
    (workspace.inbox / "high").symlink_to(elsewhere)
    inbox = Inbox(workspace)
    inbox.look(0.0)
    assert ready(inbox, 5.0) == []


def test_a_file_with_a_writer_is_never_taken_however_long_it_rests(
    workspace: Workspace, staged: Path
) -> None:
    if not leases_work(workspace.root):
        pytest.skip("no leases on this filesystem")
    path = workspace.inbox / "slow.jsonl"
    with path.open("w") as writer:
        writer.write("half")
        writer.flush()
        inbox = Inbox(workspace)
        inbox.look(0.0)
        assert ready(inbox, 3600.0) == ["slow.jsonl"]
        with pytest.raises(Busy, match="still being written"):
            copy_into(path, staged, Limits())
        assert not list(staged.iterdir())
    assert copy_into(path, staged, Limits()).bytes == 4


@pytest.mark.parametrize(
    "raw",
    [
        b"a\nb.jsonl",
        "🦉.jsonl".encode(),
        b"x" * 255,
        b"\xff\xfe.jsonl",
        b"-rf",
        b"\x1b[31mred",
        b"a b",
    ],
)
def test_any_name_is_legal_and_safe_to_show(raw: bytes, workspace: Workspace, staged: Path) -> None:
    from trainer_tui.queue.job import names_of, safe_name_of

    path = workspace.inbox / os.fsdecode(raw)
    path.write_text("x")
    inbox = Inbox(workspace)
    inbox.look(0.0)
    (candidate,) = inbox.look(1.0).ready
    assert os.fsencode(candidate.path.name) == raw
    assert copy_into(candidate.path, staged, Limits()).bytes == 1
    shown = names_of(candidate.path)["original_name"]
    assert shown.isprintable()
    shown.encode()
    safe = safe_name_of(candidate.path)
    assert safe.isascii() and "/" not in safe and not safe.startswith((".", "-"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_identity_is_the_content_also_of_a_compressed_file(
    pack: Callable[[bytes], bytes], workspace: Workspace, staged: Path
) -> None:
    path = workspace.inbox / "a"
    path.write_bytes(pack(b"hello\n" * 10))
    plain = workspace.root / "plain"
    plain.write_bytes(b"hello\n" * 10)
    found = copy_into(path, staged, Limits())
    assert found.sha256 == hashing.hash_file(plain) == hashing.hash_file(staged / "data.jsonl")
    assert found.bytes == 60 and found.source == source_of(path.lstat())
    assert oct((staged / "data.jsonl").stat().st_mode)[-3:] == "400"


def test_an_endless_first_line_is_refused_before_it_is_copied(
    workspace: Workspace, staged: Path
) -> None:
    path = workspace.inbox / "endless"
    with path.open("wb") as stream:
        stream.truncate(10 << 30)  # a hole: 10 GB that cost nothing
    with pytest.raises(DataProblem, match="first line is longer"):
        copy_into(path, staged, Limits())
    assert not list(staged.iterdir())


def test_a_file_that_changes_while_it_is_read_is_busy(
    workspace: Workspace, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.inbox / "a"
    path.write_bytes(b"hello\n")
    write = durable.write_hashed

    def change_then_write(*arguments):
        path.unlink()
        path.write_bytes(b"other\n")
        return write(*arguments)

    monkeypatch.setattr(durable, "clone", lambda *_: False)
    monkeypatch.setattr(durable, "write_hashed", change_then_write)
    with pytest.raises(Busy, match="changed while"):
        copy_into(path, staged, Limits())
    assert path.read_bytes() == b"other\n" and not list(staged.iterdir())


def job_of(path: Path, job_id: int = 7) -> Job:
    source = source_of(path.lstat())
    return Job(job_id, "normal", 0, "a", Meta(original_name=path.name, source=source))


def test_the_original_goes_only_when_it_is_still_what_was_taken(workspace: Workspace) -> None:
    path = workspace.inbox / "a"
    path.write_text("one")
    job = job_of(path)
    assert remove_original(path, job) and not path.exists()
    path.write_text("two")
    assert not remove_original(path, job) and path.read_text() == "two"


def test_a_file_that_cannot_be_removed_is_not_queued_twice(
    with_model: Workspace, row, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_model.inbox / "a.jsonl"
    path.write_text("\n".join(row(f"{at}?", f"{at}.") for at in range(20)))
    queue, context = Queue(with_model), build(with_model)
    job = queue.admit(stage(with_model, Order(path), context).folder, "normal")

    def forbidden(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "rename", forbidden)
        with pytest.raises(Refused, match="is job 1 now, but cannot be removed: Operation not"):
            remove_original(path, job)
    with pytest.raises(Refused, match="cannot be removed from the inbox"):
        stage(with_model, Order(path), context)
    assert remove_original(path, job) and not path.exists()


def test_a_file_that_slips_in_under_the_name_is_put_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.inbox / "a"
    path.write_text("one")
    job = job_of(path)
    rename = durable.rename

    def slip_in(source: Path, target: Path) -> None:
        path.unlink()
        path.write_text("two, which nobody has read")
        rename(source, target)

    monkeypatch.setattr(durable, "rename", slip_in)
    assert not remove_original(path, job)
    assert path.read_text() == "two, which nobody has read"
    assert not list(workspace.inbox.glob(f"{TAKEN_PREFIX}*"))


def test_recovery_finishes_removals_and_puts_strangers_back(workspace: Workspace) -> None:
    taken, aside = workspace.inbox / "taken", workspace.inbox / f"{TAKEN_PREFIX}8"
    stranger = workspace.inbox / f"{TAKEN_PREFIX}9"
    other = workspace.inbox / "other"
    for path in (taken, aside, stranger, other):
        path.write_text(path.name)
    recover(workspace, [job_of(taken, 7), job_of(aside, 8)])
    left = {path.read_text() for path in workspace.inbox.iterdir() if path.is_file()}
    assert left == {f"{TAKEN_PREFIX}9", "other"}
    assert not list(workspace.inbox.glob(f"{TAKEN_PREFIX}*"))


def test_an_unreadable_file_is_a_sentence(workspace: Workspace, staged: Path) -> None:
    with pytest.raises(Refused, match="not there"):
        copy_into(workspace.inbox / "gone", staged, Limits())


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", "👩\u200d👧.jsonl".encode(), b"a\nb.jsonl"])
def test_a_name_that_cannot_be_shown_as_it_is_is_kept_as_bytes(name: bytes) -> None:
    kept = names_of(Path(os.fsdecode(name)))
    assert base64.b64decode(kept["original_name_bytes"]) == name
    assert names_of(Path("chats é.jsonl")) == {
        "original_name": "chats é.jsonl", "original_name_bytes": "",
    }  # fmt: skip
