"""The only door to lasting changes on disk: write, fsync, rename, fsync the directory.

Invariant: a final name never shows a partial file. A failed fsync is final: the staging name is
removed and the error raised, never retried (the page cache may already have dropped the data;
see "Can Applications Recover from fsync Failures?", Rebello et al., ATC 2020).

Every step that outlives a power cut passes through `_operation`, so that a test can list the
steps of a transaction, or kill the process before any one of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from trainer_tui.safety import hashing

STAGING_PREFIX = ".staging-"
COPY_CHUNK_BYTES = 1 << 20
HASHED_CHUNK_BYTES = 8 << 20
CHUNKS_PER_FLUSH = 32
HASH_LEAD = 64  # chunks
_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the extents of another file

_observers: list[Callable[[str, Path], None]] = []


@contextlib.contextmanager
def observed(observer: Callable[[str, Path], None]) -> Iterator[None]:
    """Call `observer(operation, path)` before every durable operation inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def _operation(name: str, path: Path) -> None:
    for observer in tuple(_observers):
        observer(name, path)


def staging_name(path: Path) -> Path:
    """A sibling name nobody reads; left-overs are swept by `sweep_staging`."""
    shown = os.fsdecode(os.fsencode(path.name)[:120])  # a name has 255 bytes, not characters
    return path.with_name(f"{STAGING_PREFIX}{shown}-{secrets.token_hex(4)}")


def is_staging(name: str) -> bool:
    return name.startswith(STAGING_PREFIX)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    _operation("fsync-dir", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(fd: int, path: Path) -> None:
    _operation("fsync", path)
    os.fsync(fd)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that did not exist, durably up to (not including) its directory entry.

    For files inside a staging directory, whose own rename commits them all. The file gets `mode`
    exactly: the daemon's umask would take it from a settings file that others may read.

    Raises:
        FileExistsError: the name is taken.
        OSError: nothing was kept.
    """
    _operation("create", path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        with os.fdopen(fd, "wb", closefd=False) as stream:
            stream.write(data)
        sync_file(fd, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def write_new_hashed(
    path: Path, data: memoryview, mode: int, progress: Callable[[int], None]
) -> str:
    """Like `write_new`, hashing the very bytes handed to the kernel; for large buffers.

    Hashing goes beside writing and flushing, so the slower of the two is all it takes; writing is
    ahead by `HASH_LEAD` chunks at most. `data` must not change meanwhile.

    Args:
        progress: called with the size of each chunk once it is written and hashed.

    Returns:
        sha256 in hex.

    Raises:
        FileExistsError: the name is taken.
        OSError: nothing was kept.
    """
    _operation("create", path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    digest, beside = hashlib.sha256(), ThreadPoolExecutor(1)
    hashing_now: deque[tuple[Future[None], int]] = deque()

    def wait_until_left(count: int) -> None:
        while len(hashing_now) > count:
            hashed, size = hashing_now.popleft()
            hashed.result()
            progress(size)

    try:
        for number, start in enumerate(range(0, len(data), HASHED_CHUNK_BYTES), 1):
            chunk = data[start : start + HASHED_CHUNK_BYTES]
            hashing_now.append((beside.submit(digest.update, chunk), len(chunk)))
            _write_all(fd, chunk)
            if number % CHUNKS_PER_FLUSH == 0:
                os.fdatasync(fd)  # else one fsync at the end could be silent for minutes
            wait_until_left(HASH_LEAD)
        sync_file(fd, path)
        wait_until_left(0)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
        beside.shutdown(cancel_futures=True)
    return digest.hexdigest()


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Atomically give `path` new content; a reader sees the old bytes or the new, whole."""
    staged = staging_name(path)
    write_new(staged, data, mode)
    try:
        rename(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def replace_view(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Like `replace` but without fsync: for views that are rebuilt from the truth at any time."""
    staged = staging_name(path)
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Rename and make both directories durable. The moment of the rename is the commit."""
    _operation("rename", target)
    source.rename(target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def make_directory(path: Path, mode: int = 0o700, *, parents: bool = True) -> None:
    """Create a directory and its missing parents, each durable. Existing ones are left alone.

    Raises NotADirectoryError when something else has that name; without `parents` also
    FileNotFoundError when there is nothing to make it in (a disk that was unmounted)."""
    if path.is_dir():
        return
    if parents:
        make_directory(path.parent, mode)
    _operation("mkdir", path)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line to a list that only grows; one torn by a power cut is fenced off first.

    A reader leaves out what is not a whole line, and the fragment before a newline of its own.
    """
    created = not path.exists()
    _operation("append", path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        _write_all(fd, f"{chr(10) if torn else ''}{line}\n".encode())
        sync_file(fd, path)
    finally:
        os.close(fd)
    if created:
        sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Unlink, durably. A missing file is not an error: the wish is already fulfilled."""
    _operation("unlink", path)
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory that is already out of use (staging or trash). Not atomic."""
    _operation("remove-tree", path)
    shutil.rmtree(path, ignore_errors=False)
    sync_directory(path.parent)


def copy_hashed(source_fd: int, target: Path, mode: int = 0o600) -> tuple[str, int]:
    """Copy an open file into a new file, hashing on the way, and fsync it.

    Returns:
        (sha256 in hex, bytes copied).
    """
    _operation("create", target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target_fd = os.open(target, flags, mode)
    digest, size = hashlib.sha256(), 0
    try:
        while chunk := os.read(source_fd, COPY_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            _write_all(target_fd, chunk)
        sync_file(target_fd, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(target_fd)
    return digest.hexdigest(), size


def copy_resumed(
    source_fd: int,
    target: Path,
    mode: int = 0o600,
    told: Callable[[int], None] = lambda size: None,
) -> tuple[str, int]:
    """Copy an open file, going on where an earlier, interrupted copy to `target` ended.

    The part that is there already is read back and hashed, so the hash is of what is on the disk
    and the caller can tell whether it is right; when it is not, remove `target` and copy anew.

    Args:
        told: called after every chunk with its size; what it raises interrupts the copy.

    Returns:
        (sha256 in hex, size in bytes) of the whole target.
    """
    _operation("append", target)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    target_fd = os.open(target, flags, mode)
    digest = hashlib.sha256()
    try:
        size = 0
        while chunk := os.read(target_fd, COPY_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            told(len(chunk))
        os.lseek(source_fd, size, os.SEEK_SET)
        while chunk := os.read(source_fd, COPY_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            _write_all(target_fd, chunk)
            told(len(chunk))
        sync_file(target_fd, target)
    finally:
        os.close(target_fd)
    return digest.hexdigest(), size


def write_hashed(chunks: Iterable[bytes], target: Path, mode: int = 0o600) -> tuple[str, int]:
    """Write chunks into a new file, hashing on the way, and fsync it.

    Returns:
        (sha256 in hex, bytes written).
    """
    _operation("create", target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(target, flags, mode)
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            _write_all(fd, chunk)
        sync_file(fd, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return digest.hexdigest(), size


def clone(source_fd: int, target: Path, mode: int = 0o600) -> bool:
    """Make a new file that shares an open file's extents; False where the filesystem cannot."""
    _operation("create", target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(target, flags, mode)
    try:
        fcntl.ioctl(fd, _FICLONE, source_fd)
        sync_file(fd, target)
        return True
    except OSError:
        target.unlink()
        return False
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def share(source: Path, target: Path) -> str:
    """Give an immutable file a second name: reflink, else hard link, else verified copy.

    Returns:
        "reflink", "link" or "copy": which one it was.
    """
    _operation("share", target)
    if _reflink(source, target):
        return "reflink"
    try:
        os.link(source, target, follow_symlinks=False)
        return "link"
    except OSError as problem:
        if problem.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        copied, _ = copy_hashed(fd, target, stat.S_IMODE(os.fstat(fd).st_mode))
    finally:
        os.close(fd)
    if hashing.hash_file(target) != copied:
        target.unlink()
        raise OSError(errno.EIO, f"{target} reads back differently from what was written")
    return "copy"


def _reflink(source: Path, target: Path) -> bool:
    with source.open("rb") as original:
        mode = stat.S_IMODE(os.fstat(original.fileno()).st_mode)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            fcntl.ioctl(fd, _FICLONE, original.fileno())
        except OSError:
            os.close(fd)
            target.unlink()  # this filesystem cannot share extents: the caller links instead
            return False
        try:
            os.fsync(fd)  # a failure here is final, no reason to try another way
            return True
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def sweep_staging(directory: Path) -> list[Path]:
    """Remove what a killed process left under staging names. Only call while holding the lock
    of whoever stages there."""
    swept = []
    for entry in directory.iterdir() if directory.is_dir() else ():
        if is_staging(entry.name):
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                remove_file(entry)
            swept.append(entry)
    return swept
