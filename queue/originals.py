"""After admission: the original goes, and only when it is still the file that was taken.

Invariant: what is removed is known to be a job; anything else keeps its name or gets it back. An
original that cannot be removed stays where it is and is said.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trainer_tui.queue.intake import entries, source_of
from trainer_tui.queue.job import META_NAME, Job, Source, decode_meta, parse_directory_name
from trainer_tui.safety import durable
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import file_name_text
from trainer_tui.safety.workspace import Workspace

TAKEN_PREFIX = ".trainer-tui-taken-"
Place = tuple[int, int, int, int]  # device, inode, bytes, mtime_ns


@dataclass(slots=True)
class Recovered:
    """What `recover` found. `left`: originals of jobs that cannot be removed. `stuck`: sentences
    about names that cannot be given back."""

    removed: list[Path] = field(default_factory=list)
    left: dict[Path, Job] = field(default_factory=dict)
    stuck: list[str] = field(default_factory=list)


def remove_original(path: Path, job: Job) -> bool:
    """Remove the file that became `job`, unless another file has its name by now.

    The name is moved aside first: what was moved is then known for certain, and is put back when
    it is not what was taken.

    Raises:
        Refused: it cannot be removed (the folder is another's, or read-only). It stays; whoever
            takes files must remember that it is a job.
    """
    aside = path.with_name(f"{TAKEN_PREFIX}{job.id}")
    try:
        if source_of(path.lstat()) != job.meta.source:
            return False
        durable.rename(path, aside)
    except FileNotFoundError:
        return False
    except OSError as problem:
        raise Refused(
            f"inbox: {file_name_text(os.fsencode(path.name))} is job {job.id} now, but cannot be "
            f"removed: {problem.strerror}",
            f"let the daemon's user write to {path.parent}, or remove the file; it is not taken "
            "again unless it changes",
        ) from None
    if source_of(aside.lstat()) != job.meta.source:
        _put_back(aside, path)
        return False
    durable.remove_file(aside)
    return True


def is_gone(path: Path) -> bool:
    """Whether nothing has this name; False where that cannot be told."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _put_back(aside: Path, path: Path) -> None:
    """Give a file its name again; if that is taken too, a name beside it."""
    for name in (path.name, f"recovered-{aside.name.lstrip('.')}.jsonl"):
        target = path.with_name(name)
        try:
            os.link(aside, target, follow_symlinks=False)
        except FileExistsError:
            continue
        durable.sync_directory(target.parent)
        durable.remove_file(aside)
        return


def recover(workspace: Workspace, jobs: list[Job]) -> Recovered:
    """After a kill: remove originals whose jobs are committed, put back what was moved aside. What
    cannot be done in one folder leaves the others alone."""
    taken = {_place(job.meta.source): job for job in jobs if job.meta.source.inode}
    found = Recovered()
    for folder in (workspace.inbox / "high", workspace.inbox, workspace.inbox / "low"):
        _recover_asides(folder, taken, found)
        for path, info in entries(folder, set()):  # what is odd is said by the looks that follow
            job = taken.get(_place(source_of(info))) if stat.S_ISREG(info.st_mode) else None
            if job is None:
                continue
            try:
                if remove_original(Path(path), job):
                    found.removed.append(Path(path))
            except Refused:  # said by the caller, for all of them
                found.left[Path(path)] = job
    return found


def _recover_asides(folder: Path, taken: dict[Place, Job], found: Recovered) -> None:
    try:
        for aside in folder.glob(f"{TAKEN_PREFIX}*"):
            if _place(source_of(aside.lstat())) in taken:
                durable.remove_file(aside)
                found.removed.append(aside)
            else:
                _put_back(aside, folder / f"{aside.name.removeprefix(TAKEN_PREFIX)}.jsonl")
    except OSError as problem:
        found.stuck.append(
            f"{folder} has {TAKEN_PREFIX}… files that can neither be removed nor given their names "
            f"back: {problem.strerror}"
        )


def already_taken(queue: Path, job_id: int, source: Source) -> bool:
    """Whether a job was made of this very file, which could not be removed then."""
    for folder in queue.glob(f"*/*-{job_id}-*"):
        name = parse_directory_name(folder.name)
        if name is not None and name.id == job_id:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                return decode_meta((folder / META_NAME).read_bytes()).source == source
    return False


def _place(source: Source) -> Place:
    return source.device, source.inode, source.bytes, source.mtime_ns
