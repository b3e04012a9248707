"""Tokens on disk, memory-mapped, keyed by everything that decides them.

Invariant: the key is a hash of (format, file, tokenizer, template, options), so a changed template
never meets stale tokens; a folder under its final name is whole (one rename commits it).
A cache may be deleted at any time, also while it is in use; it is built again when asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.encode import encode_file
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import RowProblem
from trainer_tui.data.template import ChatTemplate, Document, EncodedRow
from trainer_tui.safety import config, durable, locks

FORMAT = 1
META_NAME = "meta.json"
_COLUMNS: dict[str, tuple[str, int]] = {  # name -> (little-endian type, values a document)
    "lengths": ("<i4", 1),
    "supervised": ("<i4", 1),
    "rows": ("<i8", 1),
    "row_hashes": ("<u8", 2),
}
_STREAMS: dict[str, str] = {"ids": "<i4", "mask": "|b1"}


class Meta(msgspec.Struct, frozen=True):
    """Written last into the folder; sizes are checked at every opening."""

    format: int
    key: str
    documents: int
    tokens: int
    supervised: int
    file_sha256: str
    rejected: int


def token_key(file_sha256: str, template: ChatTemplate, options: TokenOptions) -> str:
    """32 hex digits: equal keys mean equal tokens."""
    parts = (FORMAT, file_sha256, template.tokenizer_hash, template.template_hash, options.key())
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


class TokenFile:
    """The documents of one file. Arrays are read-only views of the mapped files.

    Attributes:
        key: what `token_key` gave.
        documents: how many.
        tokens, supervised_tokens: sums over all documents.
        lengths, supervised: int32 [documents]; rows: int64 [documents], the line in the file.
        row_hashes: uint64 [documents, 2], the row's content identity.
    """

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError or ValueError: not there, or not whole."""
        meta = msgspec.json.decode((folder / META_NAME).read_bytes(), type=Meta)
        if meta.format != FORMAT:
            raise ValueError(f"{folder} has format {meta.format}")
        self.key, self.documents = meta.key, meta.documents
        self.tokens, self.supervised_tokens = meta.tokens, meta.supervised
        self.rejected = meta.rejected
        self.lengths: NDArray[np.int32] = _map(folder / "lengths", "<i4", meta.documents)
        self.supervised: NDArray[np.int32] = _map(folder / "supervised", "<i4", meta.documents)
        self.rows: NDArray[np.int64] = _map(folder / "rows", "<i8", meta.documents)
        flat = _map(folder / "row_hashes", "<u8", 2 * meta.documents)
        self.row_hashes: NDArray[np.uint64] = flat.reshape(-1, 2)
        self._ids: NDArray[np.int32] = _map(folder / "ids", "<i4", meta.tokens)
        self._mask: NDArray[np.bool_] = _map(folder / "mask", "|b1", meta.tokens)
        self._starts = np.concatenate(
            (np.zeros(1, np.int64), np.cumsum(self.lengths, dtype=np.int64))
        )

    def document(self, index: int) -> Document:
        """A view, not a copy. Raises IndexError."""
        if not 0 <= index < self.documents:
            raise IndexError(index)
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        return Document(self._ids[start:end], self._mask[start:end])

    def row_hash(self, index: int) -> bytes:
        """The 16 bytes that `Conversation.identity` gave for this document's row."""
        return bytes(self.row_hashes[index].tobytes())

    def close(self) -> None:
        """Let go of the maps; views handed out stay valid until they are dropped."""
        empty = np.zeros(0, np.int32)
        self._ids, self._mask = empty, empty.astype(np.bool_)
        self.documents = 0


def _map(path: Path, kind: str, count: int) -> NDArray[Any]:
    size = path.stat().st_size
    if size != count * np.dtype(kind).itemsize:
        raise ValueError(f"{path} has {size} bytes")
    if not count:
        return np.zeros(0, kind)
    return np.memmap(path, dtype=kind, mode="r", shape=(count,))


def folder_of(cache: Path, key: str) -> Path:
    return cache / "tokens" / key


def open_existing(cache: Path, key: str) -> TokenFile | None:
    """The cached tokens, marked as used just now; None when they must be built."""
    folder = folder_of(cache, key)
    try:
        found = TokenFile(folder)
    except (FileNotFoundError, ValueError, msgspec.MsgspecError):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def open_tokens(
    data_file: Path,
    file_sha256: str,
    template: ChatTemplate,
    options: TokenOptions,
    cache: Path,
    intake: config.Intake,
    *,
    cap_bytes: int | None = None,
    progress: Callable[[], None] | None = None,
) -> TokenFile:
    """Open the file's tokens, building them first when they are not there.

    Args:
        file_sha256: of `data_file`; trusted, not computed again.
        cap_bytes: evict least recently used ones above this, never the one asked for; looked at
            only when something was built.
        progress: called after every few hundred rows while building (a heartbeat).

    Raises:
        DataProblem: the file cannot be read as rows.
        OSError: the cache cannot be written; nothing partial stays under a final name.
    """
    key = token_key(file_sha256, template, options)
    found = open_existing(cache, key)
    if found is not None:
        return found
    rows = encode_file(data_file, template, options, intake)
    found = build(cache, key, file_sha256, rows, progress=progress)
    if cap_bytes is not None:
        evict(cache, cap_bytes, keep=key)
    return found


def build(
    cache: Path,
    key: str,
    file_sha256: str,
    rows: Iterator[EncodedRow | RowProblem],
    *,
    progress: Callable[[], None] | None = None,
) -> TokenFile:
    """Write the tokens of `rows` and commit them; a second builder of the key waits for the first.

    `rows` is always read to its end. Raises like `open_tokens`.
    """
    tokens = cache / "tokens"
    durable.make_directory(tokens)
    durable.make_directory(cache / "locks")
    lock = locks.acquire(cache / "locks" / key, wait=True)
    assert lock is not None
    try:
        existing = open_existing(cache, key)
        if existing is not None:
            for _ in rows:
                pass
            return existing
        _sweep(tokens, key)
        writer = _Writer(tokens / f"{durable.STAGING_PREFIX}{key}", key, file_sha256)
        try:
            for count, row in enumerate(rows):
                writer.add(row)
                if progress is not None and count % 256 == 0:
                    progress()
            writer.commit(folder_of(cache, key))
        except BaseException:
            writer.abandon()
            raise
        return TokenFile(folder_of(cache, key))
    finally:
        lock.release()


def _sweep(tokens: Path, key: str) -> None:
    """Remove what a killed builder of this key left, and a folder that does not open."""
    for left in (tokens / f"{durable.STAGING_PREFIX}{key}", tokens / key):
        if left.exists():
            durable.remove_tree(left)


class _Writer:
    """Streams of a folder under construction."""

    def __init__(self, folder: Path, key: str, file_sha256: str) -> None:
        self.folder, self.key, self.file_sha256 = folder, key, file_sha256
        self.documents = self.tokens = self.supervised = self.rejected = 0
        durable.make_directory(folder)
        self._files = {name: (folder / name).open("xb") for name in (*_COLUMNS, *_STREAMS)}

    def add(self, row: EncodedRow | RowProblem) -> None:
        if isinstance(row, RowProblem):
            self.rejected += 1
            return
        identity = row.conversation.identity()
        for document in row.documents:
            supervised = document.supervised
            self._files["ids"].write(document.ids.astype("<i4", copy=False).tobytes())
            self._files["mask"].write(document.mask.tobytes())
            self._files["lengths"].write(len(document.ids).to_bytes(4, "little"))
            self._files["supervised"].write(supervised.to_bytes(4, "little"))
            self._files["rows"].write(row.conversation.line.to_bytes(8, "little"))
            self._files["row_hashes"].write(identity)
            self.documents += 1
            self.tokens += len(document.ids)
            self.supervised += supervised

    def commit(self, final: Path) -> None:
        for name, stream in self._files.items():
            stream.flush()
            durable.sync_file(stream.fileno(), self.folder / name)
            stream.close()
        meta = Meta(
            FORMAT,
            self.key,
            self.documents,
            self.tokens,
            self.supervised,
            self.file_sha256,
            self.rejected,
        )
        durable.write_new(self.folder / META_NAME, msgspec.json.encode(meta), 0o400)
        durable.sync_directory(self.folder)
        durable.rename(self.folder, final)

    def abandon(self) -> None:
        for stream in self._files.values():
            with contextlib.suppress(OSError):
                stream.close()
        with contextlib.suppress(OSError):
            durable.remove_tree(self.folder)


def evict(cache: Path, cap_bytes: int, keep: str = "") -> list[str]:
    """Delete the least recently used tokens until all fit; left-overs of dead builders too.

    Returns:
        The keys that went.
    """
    return _evict(cache, cap_bytes, cap_bytes, keep)[0]


def _evict(cache: Path, cap_bytes: int, until_bytes: int, keep: str) -> tuple[list[str], int]:
    """Above the cap, down to `until_bytes`. Returns the keys that went and the bytes that stay."""
    tokens = cache / "tokens"
    entries, total = [], 0
    for folder in tokens.iterdir() if tokens.is_dir() else ():
        if durable.is_staging(folder.name):
            _drop_if_dead(cache, folder)
            continue
        with contextlib.suppress(FileNotFoundError):
            size = _size_bytes(folder)
            entries.append((folder.stat().st_mtime_ns, folder.name, size))
            total += size
    gone: list[str] = []
    limit = until_bytes if total > cap_bytes else cap_bytes
    for _, name, size in sorted(entries):
        if total <= limit:
            break
        if name != keep:
            with contextlib.suppress(FileNotFoundError):
                durable.remove_tree(tokens / name)
            total -= size
            gone.append(name)
    return gone, total


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


class CacheRoom:
    """Keeps a cache below its cap while many files are built one after the other.

    Everything is looked at once, and again only when what was built since may have filled the
    cache; then a twentieth more goes, so that not every file looks at all others. What other
    processes build meanwhile is seen at the next look.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._cap_bytes = 0
        self._left_bytes = -1

    def built(self, key: str, cap_bytes: int) -> None:
        """The tokens of `key` were built; they stay."""
        with contextlib.suppress(FileNotFoundError):
            self._left_bytes -= _size_bytes(folder_of(self._cache, key))
        if self._left_bytes < 0 or cap_bytes != self._cap_bytes:
            _, stay = _evict(self._cache, cap_bytes, cap_bytes - cap_bytes // 20, key)
            self._cap_bytes, self._left_bytes = cap_bytes, cap_bytes - stay


def _drop_if_dead(cache: Path, staging: Path) -> None:
    key = staging.name.removeprefix(durable.STAGING_PREFIX)
    lock = locks.acquire(cache / "locks" / key)
    if lock is not None:
        try:
            with contextlib.suppress(FileNotFoundError):
                durable.remove_tree(staging)
        finally:
            lock.release()
