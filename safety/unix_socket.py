"""Unix sockets below a path longer than the kernel's 107 bytes, by way of `/proc/self/fd`."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name for `path`, good while the block runs. Raises FileNotFoundError."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path, backlog: int = 128) -> socket.socket:
    """A listening socket, mode 0600. The caller holds the daemon's lock, so a name that is
    there already is a left-over and is removed.

    Raises:
        OSError: the name is taken by something that is no socket, or cannot be bound.
    """
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} is not a socket")
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old_mask = os.umask(0o177)
    try:
        with short_path(path) as name:
            server.bind(name)
    except BaseException:
        server.close()
        raise
    finally:
        os.umask(old_mask)
    server.listen(backlog)
    server.setblocking(False)
    return server


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connected client socket. Raises OSError when nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(timeout_s)
    try:
        with short_path(path) as name:
            client.connect(name)
    except BaseException:
        client.close()
        raise
    return client
