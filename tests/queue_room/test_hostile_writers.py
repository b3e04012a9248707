"""Writers of every kind, and files that change under our hands: never early, never another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace

from trainer_tui.data.row_reader import Limits
from trainer_tui.queue.intake import Busy, Inbox, copy_into, open_source
from trainer_tui.queue.job import Job, Meta
from trainer_tui.queue.originals import remove_original
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace

SWAPS = 10_000
SECRET = b"root:secret\n"


@pytest.fixture
def staged(workspace: Workspace) -> Path:
    folder = workspace.queue / ".staging-test"
    folder.mkdir()
    return folder


def ready(inbox: Inbox, now_s: float) -> list[str]:
    return [candidate.path.name for candidate in inbox.look(now_s).ready]


def test_a_file_written_through_a_map_is_not_taken_while_its_writer_has_it(
    workspace: Workspace, staged: Path
) -> None:
    """Stores into a map change no size, and no time until they are flushed, and the descriptor is
    closed: only the lease sees that somebody still writes."""
    path = workspace.inbox / "mapped.jsonl"
    path.write_bytes(bytes(4096))
    code = (
        "import mmap, sys\n"
        "stream = open(sys.argv[1], 'r+b'); view = mmap.mmap(stream.fileno(), 4096)\n"
        "stream.close()\n"
        "view[:4] = b'half'; print('mapped', flush=True); sys.stdin.readline()\n"
        "view[:8] = b'complete'; view.flush(); view.close()\n"
    )
    command = (sys.executable, "-c", code, str(path))
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None and writer.stdout is not None
    assert writer.stdout.readline() == b"mapped\n"
    inbox = Inbox(workspace)
    inbox.look(0.0)
    assert ready(inbox, 60.0) == [path.name]  # it looks settled
    with pytest.raises(Busy, match="still being written"):
        copy_into(path, staged, Limits())
    writer.communicate(b"go\n")
    copy_into(path, staged, Limits())
    assert (staged / "data.jsonl").read_bytes().startswith(b"complete")


def test_rsync_is_seen_under_its_final_name_only(workspace: Workspace, staged: Path) -> None:
    inbox = Inbox(workspace)
    partial = workspace.inbox / ".chats.jsonl.Xa81Gk"
    partial.write_bytes(b"half")
    inbox.look(0.0)
    assert ready(inbox, 60.0) == []
    partial.write_bytes(b"complete")
    partial.rename(workspace.inbox / "chats.jsonl")
    inbox.look(61.0)
    assert ready(inbox, 62.0) == ["chats.jsonl"]
    copy_into(workspace.inbox / "chats.jsonl", staged, Limits())
    assert (staged / "data.jsonl").read_bytes() == b"complete"


def test_what_is_appended_after_it_was_taken_stays_in_the_inbox(
    workspace: Workspace, staged: Path
) -> None:
    path = workspace.inbox / "log.jsonl"
    path.write_bytes(b"one\n")
    copied = copy_into(path, staged, Limits())
    job = Job(1, "normal", 0, "log.jsonl", Meta(id=1, source=copied.source))
    with path.open("ab") as stream:
        stream.write(b"two\n")
    assert not remove_original(path, job)
    assert path.read_bytes() == b"one\ntwo\n"
    inbox = Inbox(workspace)
    inbox.look(0.0)
    assert ready(inbox, 1.0) == ["log.jsonl"], "as a file of its own"


def test_a_link_swapped_in_between_look_and_open_is_never_followed(
    workspace: Workspace, staged: Path, tmp_path: Path
) -> None:
    """The path is a plain file and a link to a secret by turns, as fast as the disk does it."""
    secret, path = tmp_path / "shadow", workspace.inbox / "a.jsonl"
    secret.write_bytes(SECRET)
    plain, link = workspace.inbox / ".plain", workspace.inbox / ".link"
    ending = threading.Event()
    path.write_bytes(b"fine\n")

    def swap() -> None:
        while not ending.is_set():
            link.symlink_to(secret)
            link.rename(path)
            plain.write_bytes(b"fine\n")
            plain.rename(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    taken = refused = 0
    deadline_s = time.monotonic() + 30
    try:
        for _ in range(SWAPS):
            try:
                fd = open_source(path)
            except (Refused, Busy):
                refused += 1
                continue
            with os.fdopen(fd, "rb") as stream:
                assert stream.read() in (b"fine\n", b"")
            taken += 1
            assert time.monotonic() < deadline_s
    finally:
        ending.set()
        swapper.join()
    assert taken and refused and taken + refused == SWAPS
    assert secret.read_bytes() == SECRET


def test_a_line_of_ten_gigabytes_is_refused_in_flat_memory_and_in_time(
    with_model: Workspace,
) -> None:
    path = with_model.root / "endless.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"messages": [')
        stream.truncate(10 << 30)
    code = (
        "import sys\n"
        "from trainer_tui.queue.intake_worker import Contexts, answer\n"
        "from trainer_tui.safety.workspace import Workspace\n"
        "from pathlib import Path; import json\n"
        "space = Workspace(Path(sys.argv[1]))\n"
        "ask = {'do': 'take', 'path': sys.argv[2], 'keep_original': True}\n"
        "print(json.dumps(answer(json.dumps(ask).encode(), space, Contexts(space))))\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
    )
    started_s = time.monotonic()
    done = subprocess.run(
        (sys.executable, "-c", code, str(with_model.root), str(path)),
        capture_output=True,
        text=True,
        check=True,
    )
    # VmHWM begins anew at exec; ru_maxrss would carry this test process's own size along.
    said, peak_kib = done.stdout.splitlines()
    assert '"data_error"' in said and "first line is longer than" in said
    assert int(peak_kib) < 200 * 1024
    assert time.monotonic() - started_s < 10


# A user namespace of its own that may not have one inotify instance; the rest stays as it is.
WITHOUT_INOTIFY = """
import ctypes, os
uid, gid = os.getuid(), os.getgid()
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
    raise SystemExit(77)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"{uid} {uid} 1")
open("/proc/self/gid_map", "w").write(f"{gid} {gid} 1")
open("/proc/sys/user/max_inotify_instances", "w").write("0")
"""


def may_go_without_inotify() -> bool:
    code = f"{WITHOUT_INOTIFY}\nraise SystemExit(ctypes.CDLL(None).inotify_init() != -1)"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, check=False)
    return done.returncode == 0


def test_files_are_found_by_looking_where_inotify_cannot_be_had(tmp_path: Path) -> None:
    if not may_go_without_inotify():
        pytest.skip("no user namespaces here")
    harness = Harness(make_workspace(tmp_path / "ws", "poll_interval = 1.0\n"))
    harness.prelude = WITHOUT_INOTIFY
    harness.start()
    try:
        harness.post("/v1/training/pause")
        names = ("a.jsonl", "b.jsonl")
        for name in names:
            (harness.workspace.inbox / name).write_bytes(chat_rows(2, name))
        for name in names:
            harness.until_job(name, "waiting")
        log = (harness.workspace.logs / "daemon.log").read_text()
        assert "watching the inbox" in log, "it was looked for, not told"
    finally:
        harness.close()
