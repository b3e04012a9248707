"""sha256 of a file, and how to stop that when something more urgent comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 8 << 20


class GaveWay(Exception):
    """Long work that was asked to stop did; nothing came of it."""


def hash_file(path: Path, should_stop: Callable[[], bool] | None = None) -> str:
    """sha256 of a file's content, in hex.

    Args:
        should_stop: asked every 8 MB.

    Raises:
        GaveWay: it was told to stop.
    """
    with path.open("rb", buffering=0) as stream:
        if should_stop is None:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
        while size := stream.readinto(buffer):
            if should_stop():
                raise GaveWay
            digest.update(buffer[:size])
        return digest.hexdigest()
