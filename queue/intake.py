"""From the inbox to a staged job: which file is ready, and a safe copy. See `originals.py` for what
becomes of the original.

Invariant: a file is read only after its writer has let go of it; nothing but a plain file is ever
opened. Where the kernel does not tell whether there is a writer (another user's file), the file
must have looked the same for `FOREIGN_SETTLE_S`: a writer that stalls for longer is not known.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer_tui.data.row_reader import Limits, is_compressed, plain_chunks
from trainer_tui.queue import writers
from trainer_tui.queue.job import DATA_NAME, Source, parse_directory_name
from trainer_tui.safety import durable, hashing
from trainer_tui.safety.errors import DataProblem, Refused
from trainer_tui.safety.text import file_name_text, printable
from trainer_tui.safety.workspace import Workspace

SETTLE_S = 1.0  # a file must look the same over this long
FOREIGN_SETTLE_S = 30.0  # and over this long when nobody can tell whether it has a writer
_UNFINISHED = (".part", ".tmp", "~")


class Busy(Refused):
    """Not now: somebody still writes it, or it changed while it was read."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file whose writer seems to be done; `take` makes sure."""

    path: Path
    priority: str
    source: Source
    unchanged_s: float = 0.0  # how long it was seen to look the same


@dataclass(slots=True)
class InboxLook:
    """What one look found. `odd`: sentences, each said once, about what is left alone."""

    ready: list[Candidate] = field(default_factory=list)
    settling: int = 0
    odd: list[str] = field(default_factory=list)


class Inbox:
    """Remembers what the last look saw. Takes nothing and opens nothing."""

    def __init__(self, workspace: Workspace) -> None:
        self._folders = (
            (workspace.inbox / "high", "high"),
            (workspace.inbox, "normal"),
            (workspace.inbox / "low", "low"),
        )
        self._seen: dict[str, dict[str, tuple[Source, float]]] = {}
        self._said: dict[str, set[str]] = {}

    def look(self, now_s: float, above: str = "") -> InboxLook:
        """What is ready, by priority and then in the order of names.

        Args:
            now_s: monotonic seconds.
            above: only at the folders of a higher priority than this one.
        """
        found = InboxLook()
        for folder, priority in self._folders:
            if priority == above:
                break
            self._look_into(folder, priority, now_s, found)
        return found

    def _look_into(self, folder: Path, priority: str, now_s: float, found: InboxLook) -> None:
        old = self._seen.get(priority, {})
        seen: dict[str, tuple[Source, float]] = {}
        odd: set[str] = set()
        for path, info in entries(folder, odd):
            reason = _odd(path, info)
            if reason is not None:
                odd.add(reason)
                continue
            source = source_of(info)
            before, since = old.get(path, (None, now_s))
            if before != source:
                since = now_s
            seen[path] = source, since
            if now_s - since >= SETTLE_S:
                found.ready.append(Candidate(Path(path), priority, source, now_s - since))
            else:
                found.settling += 1
        found.odd += sorted(odd - self._said.get(priority, set()))
        self._seen[priority], self._said[priority] = seen, odd


def entries(folder: Path, odd: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Paths in the order of their names, as texts: there may be a hundred thousand. What cannot be
    looked at becomes a sentence in `odd`, and the rest goes on."""
    try:
        if folder.is_symlink():
            return
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_unfinished(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as problem:
        odd.add(_not_looked_at(folder, problem))
        return
    for entry in sorted(found, key=lambda entry: entry.name):
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone again
        except OSError as problem:  # a folder without x, a bad sector: one sentence for all of it
            odd.add(_not_looked_at(folder, problem))
            continue
        if not (stat.S_ISDIR(info.st_mode) and entry.name in ("high", "low")):
            yield entry.path, info


def _not_looked_at(folder: Path, problem: OSError) -> str:
    what = "the inbox" if folder.name not in ("high", "low") else f"inbox/{folder.name}"
    return (
        f"{what} cannot be looked into: {problem.strerror}; nothing in it is taken until the "
        "daemon's user may read it"
    )


def is_unfinished(name: str) -> bool:
    """Names that a writer uses while it writes (and our own, while an original goes)."""
    return name.startswith(".") or name.endswith(_UNFINISHED)


def _odd(path: str, info: os.stat_result) -> str | None:
    """Why something in the inbox is left alone; None for a file that may be taken."""
    kind = kind_problem(info)
    if kind is None:
        return None
    bare = os.path.basename(path)  # noqa: PTH119 - a text for speed
    job = parse_directory_name(bare) if stat.S_ISDIR(info.st_mode) else None
    if job is not None:
        kind = (
            f"is the folder of job {job.id}; move it to state/queue/normal to queue it, or put its "
            f"{DATA_NAME} here to queue that as a new file"
        )
    return f"inbox: {printable(file_name_text(os.fsencode(bare)), 80)} {kind}"


def is_unchanged(candidate: Candidate) -> bool:
    """Whether it is still what the look saw: a list of thousands takes its time."""
    try:
        return source_of(candidate.path.lstat()) == candidate.source
    except OSError:
        return False


def kind_problem(info: os.stat_result) -> str | None:
    """Why this is not a file to take; None when it is."""
    mode = info.st_mode
    if stat.S_ISLNK(mode):
        return "is a symbolic link; put the file itself there"
    if stat.S_ISDIR(mode):
        return "is a folder; put its files there one by one"
    if not stat.S_ISREG(mode):
        return "is not a plain file"
    if info.st_nlink > 1 and info.st_uid != os.geteuid():
        return "is a hard link to another user's file; put a copy there"
    return None


def source_of(info: os.stat_result) -> Source:
    return Source(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def open_source(path: Path, *, rested: bool = False) -> int:
    """Open a file to take; the descriptor is the caller's.

    Args:
        rested: it has looked the same for `FOREIGN_SETTLE_S`, or a person says that it is whole.

    Raises:
        Refused: not a plain file, or not ours to read; with the reason.
        Busy: a writer has it open, or may have.
    """
    name = file_name_text(os.fsencode(path.name))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        problem = kind_problem(path.lstat())
        if problem:
            raise Refused(f"{name} {problem}")
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise Refused(f"{name} is not there") from None
    except PermissionError:
        raise Refused(
            f"{name} may not be read", f"chmod u+r, or chown it to {os.geteuid()}"
        ) from None
    except OSError as problem_of_open:
        if problem_of_open.errno == errno.ELOOP:
            raise Refused(f"{name} is a symbolic link; put the file itself there") from None
        raise
    try:
        problem = kind_problem(os.fstat(fd))
        if problem:
            raise Refused(f"{name} {problem}")
        if _may_have_writer(fd, rested):
            raise Busy(f"{name} is still being written")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _may_have_writer(fd: int, rested: bool) -> bool:
    answer = writers.ask(fd)
    return answer == "yes" or (answer == "unknown" and not rested)


@dataclass(frozen=True, slots=True)
class Copied:
    """The staged copy. `sha256` and `bytes` are of the (decompressed) copy."""

    sha256: str
    bytes: int
    source: Source


def copy_into(path: Path, staged: Path, limits: Limits, *, rested: bool = False) -> Copied:
    """Copy a file to take into `staged/data.jsonl`, decompressed, hashed and fsynced.

    Raises:
        Busy, Refused: as `open_source`; Busy also when it changed meanwhile.
        DataProblem: damaged compression, a bomb, one endless line.
        OSError: it cannot be read or the copy cannot be written.
    """
    fd = open_source(path, rested=rested)
    try:
        before = os.fstat(fd)
        target = staged / DATA_NAME
        with os.fdopen(fd, "rb", closefd=False) as stream:
            head = stream.read(4096)
            stream.seek(0)
            if not is_compressed(head):
                _refuse_endless_line(fd, before.st_size, limits)
            if not is_compressed(head) and durable.clone(fd, target, 0o400):
                sha256, size = hashing.hash_file(target), target.stat().st_size
            else:
                sha256, size = durable.write_hashed(plain_chunks(stream, limits), target, 0o400)
        after = os.fstat(fd)
        if _changed(before, after) or not _still_at(path, after) or _may_have_writer(fd, rested):
            target.unlink()
            raise Busy(f"{file_name_text(os.fsencode(path.name))} changed while it was read")
        return Copied(sha256, size, source_of(after))
    finally:
        os.close(fd)


def _refuse_endless_line(fd: int, size: int, limits: Limits) -> None:
    """A line above the cap at the very start is refused before gigabytes are copied."""
    if size <= limits.max_line_bytes * 4:
        return
    position = 0
    while position <= limits.max_line_bytes:
        chunk = os.pread(fd, 1 << 20, position)
        if not chunk or b"\n" in chunk:
            return
        position += len(chunk)
    raise DataProblem(
        f"its first line is longer than {limits.max_line_bytes} bytes",
        "the file must be JSON lines, one row on each line",
    )


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


def _still_at(path: Path, info: os.stat_result) -> bool:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (info.st_dev, info.st_ino)
