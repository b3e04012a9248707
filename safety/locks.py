"""Locks that die with their holder: flock(2) on a file that is never unlinked.

A lock file deleted under its holder is noticed by `still_ours`: the name then leads to another
inode, and the holder must treat itself as locked out.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety.errors import Locked


@dataclass(frozen=True, slots=True)
class Lock:
    """A held lock. The descriptor may be inherited by children, who then hold it too."""

    path: Path
    fd: int

    def still_ours(self) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        held = os.fstat(self.fd)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def write_owner(self, text: str) -> None:
        """Leave a note for whoever is refused; a note only, never proof of life."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def release(self) -> None:
        os.close(self.fd)

    def let_go(self) -> None:
        """Let somebody else have it, for all who share the descriptor; `take_again` follows."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def take_again(self) -> bool:
        """False while another process holds it.

        Raises:
            Locked: the file was replaced meanwhile, so that its name leads to another lock.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not self.still_ours():
            raise Locked(f"{self.path} was replaced by another file", "leave lock files alone")
        return True


def acquire(path: Path, *, wait: bool = False) -> Lock | None:
    """Take the lock, or return None when another process holds it and `wait` is false."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:  # ENOLCK, an interrupt: do not leave the descriptor behind
            os.close(fd)
            raise
        lock = Lock(path, fd)
        if lock.still_ours():
            return lock
        os.close(fd)  # the name was replaced while we waited: lock the new one


def owner_note(path: Path) -> str:
    """What the holder wrote with `write_owner`; empty when there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
