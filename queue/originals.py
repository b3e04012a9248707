"""After admission: the original goes, and only when it is still the file that was taken.

Invariant: what is removed is known to be a job; anything else keeps its name or gets it back. An
original that cannot be removed stays where it is and is said.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import msgspec

from trainer_tui.queue.intake import entries, source_of
from trainer_tui.queue.job import META_NAME, Job, Source, decode_meta, parse_directory_name
from trainer_tui.safety import durable
from trainer_tui.safety.workspace import Workspace

TAKEN_PREFIX = ".trainer-tui-taken-"


def remove_original(path: Path, job: Job) -> bool:
    """Remove the file that became `job`, unless another file has its name by now.

    The name is moved aside first: what was moved is then known for certain, and is put back when
    it is not what was taken. A folder that does not let us remove files keeps its file: it is
    known as taken (`already_taken`) and never queued twice.
    """
    aside = path.with_name(f"{TAKEN_PREFIX}{job.id}")
    try:
        if source_of(path.lstat()) != job.meta.source:
            return False
        durable.rename(path, aside)
    except (FileNotFoundError, PermissionError):
        return False
    if source_of(aside.lstat()) != job.meta.source:
        _put_back(aside, path)
        return False
    durable.remove_file(aside)
    return True


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


def recover(workspace: Workspace, jobs: list[Job]) -> list[Path]:
    """After a kill: remove originals whose jobs are committed, put back what was moved aside.

    Returns:
        The originals that were removed.
    """
    taken = {_place(job.meta.source): job for job in jobs if job.meta.source.inode}
    removed = []
    for folder in (workspace.inbox / "high", workspace.inbox, workspace.inbox / "low"):
        for aside in folder.glob(f"{TAKEN_PREFIX}*"):
            job = taken.get(_place(source_of(aside.lstat())))
            if job is not None:
                durable.remove_file(aside)
                removed.append(aside)
            else:
                _put_back(aside, folder / f"{aside.name.removeprefix(TAKEN_PREFIX)}.jsonl")
        for path, info in entries(folder):
            job = taken.get(_place(source_of(info))) if stat.S_ISREG(info.st_mode) else None
            if job is not None and remove_original(Path(path), job):
                removed.append(Path(path))
    return removed


def already_taken(queue: Path, job_id: int, source: Source) -> bool:
    """Whether a job was made of this very file, which could not be removed then."""
    for folder in queue.glob(f"*/*-{job_id}-*"):
        name = parse_directory_name(folder.name)
        if name is not None and name.id == job_id:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                return decode_meta((folder / META_NAME).read_bytes()).source == source
    return False


def _place(source: Source) -> tuple[int, int, int, int]:
    return source.device, source.inode, source.bytes, source.mtime_ns
