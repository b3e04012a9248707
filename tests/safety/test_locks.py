"""Locks die with their holder, are inherited by children, and notice a file that was replaced."""

from __future__ import annotations

import subprocess
import sys
import threading

from trainer_tui.safety import locks

HOLDER = """
import sys
from pathlib import Path
from trainer_tui.safety import locks
lock = locks.acquire(Path(sys.argv[1]))
lock.write_owner("pid and purpose")
print("held" if lock else "refused", flush=True)
sys.stdin.readline()
"""


def hold(path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_holder_is_refused_even_in_the_same_process(tmp_path):
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None and locks.acquire(tmp_path / "lock") is None
    lock.release()
    again = locks.acquire(tmp_path / "lock")
    assert again is not None
    again.release()


def test_a_lock_dies_with_its_holder_whatever_killed_it(tmp_path):
    path = tmp_path / "lock"
    holder = hold(path)
    assert locks.acquire(path) is None
    assert locks.owner_note(path) == "pid and purpose"
    holder.kill()
    holder.wait()
    lock = locks.acquire(path)
    assert lock is not None
    lock.release()


def test_a_child_that_inherits_the_descriptor_holds_the_lock_too(tmp_path):
    path = tmp_path / "lock"
    lock = locks.acquire(path)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline()"],
        stdin=subprocess.PIPE,
        pass_fds=[lock.fd],
    )
    lock.release()
    assert locks.acquire(path) is None
    child.communicate(b"\n")
    freed = locks.acquire(path)
    assert freed is not None
    freed.release()


def test_a_child_that_inherits_nothing_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    lock = locks.acquire(path)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline()"], stdin=subprocess.PIPE
    )
    lock.release()
    again = locks.acquire(path)
    assert again is not None
    again.release()
    child.communicate(b"\n")


def test_waiting_gets_the_lock_when_it_is_let_go(tmp_path):
    path = tmp_path / "lock"
    holder = hold(path)
    got: list[locks.Lock | None] = []
    waiter = threading.Thread(target=lambda: got.append(locks.acquire(path, wait=True)))
    waiter.start()
    waiter.join(0.2)
    assert got == [] and waiter.is_alive()
    holder.communicate("\n")
    waiter.join(10)
    assert got[0] is not None and got[0].still_ours()
    got[0].release()


def test_a_holder_notices_that_its_file_was_taken_away(tmp_path):
    path = tmp_path / "lock"
    lock = locks.acquire(path)
    path.unlink()
    assert not lock.still_ours()
    other = locks.acquire(path)
    assert other is not None and other.still_ours() and not lock.still_ours()
    lock.release()
    other.release()


def test_a_waiter_is_not_fooled_by_a_file_that_was_replaced_meanwhile(tmp_path):
    path = tmp_path / "lock"
    first = locks.acquire(path)
    got: list[locks.Lock | None] = []
    waiter = threading.Thread(target=lambda: got.append(locks.acquire(path, wait=True)))
    waiter.start()
    waiter.join(0.2)
    path.unlink()
    second = locks.acquire(path)
    first.release()  # the waiter gets the old file's lock, sees the new name, and waits again
    waiter.join(0.3)
    assert got == []
    second.release()
    waiter.join(10)
    assert got[0].still_ours()
    got[0].release()


def test_a_shorter_note_leaves_nothing_of_a_longer_one(tmp_path):
    lock = locks.acquire(tmp_path / "lock")
    lock.write_owner("a long story about who holds this")
    lock.write_owner("short")
    assert locks.owner_note(tmp_path / "lock") == "short"
    lock.release()
    assert locks.owner_note(tmp_path / "missing") == ""
