"""Which rows earlier files have trained: one small file of hashes for each, kept after the job.

Invariant: only the report asks here; training never does, so a lost or old index costs a warning
and nothing else. A job carries its hashes from intake on (`row_hashes`); its completion links them
into `state/data/trained/<file sha256>`. What is missing there is made again from the completed
jobs that still exist. The newest `KEPT_ROWS` stay.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.row_reader import read_rows
from trainer_tui.data.rows import Conversation
from trainer_tui.data.token_cache import META_NAME as TOKENS_META_NAME
from trainer_tui.data.token_cache import Meta, TokenFile
from trainer_tui.queue.job import COMPLETED, DATA_NAME, META_NAME, decode_meta
from trainer_tui.queue.row_hashes import folder_of, remember
from trainer_tui.safety import durable
from trainer_tui.safety.errors import DataProblem
from trainer_tui.safety.workspace import Workspace

KEPT_ROWS = 8_000_000  # 64 MB, on disk and in memory
READ_AGAIN_BYTES = 64 << 20  # a larger file is not read again for the sake of a warning
Hashes = NDArray[np.uint64]  # first 8 bytes of `Conversation.identity`, sorted


def hashes_of(tokens: TokenFile) -> Hashes:
    """Of the rows that a file trains."""
    return np.unique(np.asarray(tokens.row_hashes[:, 0], dtype="<u8"))


def load(workspace: Workspace) -> Hashes:
    """Hashes of what was trained, newest files first until `KEPT_ROWS`; the rest is let go."""
    _complete(workspace)
    found: list[Hashes] = []
    rows = 0
    for path in _newest_first(folder_of(workspace)):
        try:
            size = path.stat().st_size // 8
            if rows + size > KEPT_ROWS and found:
                path.unlink()
                continue
            found.append(np.fromfile(path, dtype="<u8"))
        except OSError:
            continue  # another process let it go
        rows += size
    merged: Hashes = np.concatenate([np.zeros(0, np.uint64), *found])
    merged.sort()
    return merged


def _newest_first(folder: Path) -> list[Path]:
    entries = []
    with contextlib.suppress(OSError):
        entries = [
            (entry.stat().st_mtime_ns, entry.path)
            for entry in os.scandir(folder)
            if not durable.is_staging(entry.name)
        ]
    return [Path(path) for _, path in sorted(entries, reverse=True)]


def _complete(workspace: Workspace) -> None:
    """Add completed jobs whose hashes are not there: of an older release, or of a kill between."""
    folder = folder_of(workspace)
    missing: dict[str, Path] = {}
    for path in (workspace.queue / COMPLETED).glob(f"*/{META_NAME}"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            sha256 = decode_meta(path.read_bytes()).file_sha256
            if sha256 and not (folder / sha256).exists():
                missing[sha256] = path.parent
    if not missing:
        return
    for sha256, job in missing.items():
        remember(workspace, job, sha256)
    lost = {sha256: job for sha256, job in missing.items() if not (folder / sha256).exists()}
    cached = _cached(workspace.cache, lost.keys()) if lost else {}
    for sha256, job in lost.items():
        with contextlib.suppress(OSError, DataProblem):
            hashes = cached[sha256] if sha256 in cached else _read(job / DATA_NAME)
            durable.replace_view(folder / sha256, hashes.tobytes(), 0o400)


def _cached(cache: Path, wanted: Collection[str]) -> dict[str, Hashes]:
    found: dict[str, Hashes] = {}
    for path in (cache / "tokens").glob(f"*/{TOKENS_META_NAME}"):
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):  # evicted, or old
            sha256 = msgspec.json.decode(path.read_bytes(), type=Meta).file_sha256
            if sha256 in wanted and sha256 not in found:
                found[sha256] = hashes_of(TokenFile(path.parent))
    return found


def _read(data: Path) -> Hashes:
    """Raises OSError, DataProblem."""
    if data.stat().st_size > READ_AGAIN_BYTES:
        return np.zeros(0, np.uint64)
    parts = [row.identity()[:8] for row in read_rows(data) if isinstance(row, Conversation)]
    return np.unique(np.frombuffer(b"".join(parts), dtype="<u8"))
