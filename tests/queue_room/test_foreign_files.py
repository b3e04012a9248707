"""Another user's file in the inbox: no lease tells whether it has a writer, so it rests longer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_tui.data.row_reader import Limits
from trainer_tui.queue.intake import FOREIGN_SETTLE_S, Busy, Inbox, copy_into, source_of
from trainer_tui.queue.job import Job, Meta
from trainer_tui.queue.originals import recover, remove_original
from trainer_tui.queue.staging import Order
from trainer_tui.safety.workspace import Workspace

NOBODY, SOMEBODY = 65534, 1000
WRITER = 'exec 3>>"$1"; echo open; read -r _'


@pytest.fixture
def theirs() -> Iterator[Workspace]:
    """A workspace of nobody's, with a file of somebody else's; we are nobody meanwhile."""
    memory = Path("/dev/shm")
    if os.geteuid() != 0 or not os.access(memory, os.W_OK):
        pytest.skip("only root can make another user's file")
    root = Path(tempfile.mkdtemp(dir=memory))
    try:
        (root / "config.toml").touch()
        workspace = Workspace(root)
        workspace.prepare()
        for folder in (root, *root.rglob("*")):
            os.chown(folder, NOBODY, NOBODY)
        path = workspace.inbox / "up.jsonl"
        path.write_bytes(b"half")
        path.chmod(0o644)
        os.chown(path, SOMEBODY, SOMEBODY)
        os.seteuid(NOBODY)
        yield workspace
    finally:
        os.seteuid(0)
        shutil.rmtree(root)


def staged(workspace: Workspace) -> Path:
    folder = workspace.queue / ".staging-test"
    folder.mkdir(exist_ok=True)
    return folder


def test_another_users_file_is_taken_after_it_looked_the_same_for_long(theirs: Workspace) -> None:
    inbox = Inbox(theirs)
    inbox.look(0.0)
    for now_s, rested in ((4.0, False), (FOREIGN_SETTLE_S, True)):
        [found] = inbox.look(now_s).ready
        order = Order(found.path, unchanged_s=found.unchanged_s)
        assert order.rested is rested
        if not rested:
            with pytest.raises(Busy, match="still being written"):
                copy_into(found.path, staged(theirs), Limits(), rested=order.rested)
    assert copy_into(found.path, staged(theirs), Limits(), rested=True).bytes == 4
    assert Order(found.path, keep_original=True).rested, "a person says that it is whole"


def test_a_write_begins_the_rest_of_another_users_file_anew(theirs: Workspace) -> None:
    inbox = Inbox(theirs)
    inbox.look(0.0)
    os.seteuid(0)
    with (theirs.inbox / "up.jsonl").open("ab") as stream:
        stream.write(b" and more")
    os.seteuid(NOBODY)
    inbox.look(FOREIGN_SETTLE_S)
    [found] = inbox.look(FOREIGN_SETTLE_S + 4).ready
    assert not Order(found.path, unchanged_s=found.unchanged_s).rested


def test_a_writer_that_can_be_seen_keeps_another_users_file_however_long_it_rests(
    theirs: Workspace,
) -> None:
    path = theirs.inbox / "up.jsonl"
    os.seteuid(0)
    path.chmod(0o666)
    pipe = subprocess.PIPE
    writer = subprocess.Popen(
        ["/bin/sh", "-c", WRITER, "sh", str(path)], stdin=pipe, stdout=pipe, user=NOBODY
    )
    os.seteuid(NOBODY)
    assert writer.stdin is not None and writer.stdout is not None
    assert writer.stdout.readline() == b"open\n"
    try:
        with pytest.raises(Busy, match="still being written"):
            copy_into(path, staged(theirs), Limits(), rested=True)
    finally:
        writer.stdin.close()
        writer.wait(30)
    assert copy_into(path, staged(theirs), Limits(), rested=True).bytes == 4


def test_what_was_written_after_the_copy_stays(theirs: Workspace) -> None:
    path = theirs.inbox / "up.jsonl"
    copied = copy_into(path, staged(theirs), Limits(), rested=True)
    job = Job(7, "normal", 0, "up", Meta(original_name=path.name, source=copied.source))
    os.seteuid(0)
    with path.open("ab") as stream:
        stream.write(b" and the rest")
    os.seteuid(NOBODY)
    assert not remove_original(path, job)
    assert path.read_bytes() == b"half and the rest" and source_of(path.lstat()) != copied.source


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_is_said_once_and_the_others_go_on(
    theirs: Workspace, mode: int
) -> None:
    """Without r it gives no names, without x nothing but names."""
    low = theirs.inbox / "low"
    for number in range(3):
        (low / f"{number}.jsonl").write_bytes(b"row")
    low.chmod(mode)
    inbox = Inbox(theirs)
    first = inbox.look(0.0)
    assert first.odd == [
        "inbox/low cannot be looked into: Permission denied; nothing in it is taken until the "
        "daemon's user may read it"
    ]
    second = inbox.look(2.0)
    assert [found.path.name for found in second.ready] == ["up.jsonl"] and not second.odd
    path = theirs.inbox / "high" / "taken.jsonl"
    path.write_bytes(b"row")
    job = Job(7, "low", 0, "taken", Meta(source=source_of(path.lstat())))
    assert recover(theirs, [job]).removed == [path]
    low.chmod(0o755)
    inbox.look(3.0)
    names = [found.path.name for found in inbox.look(5.0).ready]
    assert names == ["up.jsonl", "0.jsonl", "1.jsonl", "2.jsonl"]


def test_an_inbox_that_may_not_be_read_is_a_sentence(theirs: Workspace) -> None:
    theirs.inbox.chmod(0o000)
    found = Inbox(theirs).look(0.0)
    assert any("the inbox cannot be looked into" in text for text in found.odd)
    assert not recover(theirs, []).left
