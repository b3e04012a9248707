"""Reading the queue's directories: what is there, and what of it cannot be a job.

A person may move, copy, edit or delete anything below `state/queue/` by hand; here it becomes
facts and sentences, never an exception.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer_tui.queue.job import (
    DATA_NAME,
    META_NAME,
    Job,
    JobName,
    Meta,
    decode_meta,
    directory_name,
    parse_directory_name,
)
from trainer_tui.queue.waiting import time_or_none
from trainer_tui.safety import clock, durable, hashing
from trainer_tui.safety.errors import is_lack
from trainer_tui.safety.text import printable
from trainer_tui.safety.workspace import PRIORITIES, QUEUE_FOLDERS

SMALL_BYTES = 64 << 10
SURE_NS = 1_000_000_000  # the kernel's time stamps are some milliseconds coarse


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person or a crash did to the queue. `kind`: moved | appeared | vanished |
    foreign | twice | damaged | edited | unreadable. `job_id` is 0 when no job is meant; `hides` is
    the folder whose jobs cannot be seen now."""

    kind: str
    job_id: int
    text: str
    hides: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A directory with a job's name. `folder` is one of QUEUE_FOLDERS."""

    folder: str
    name: JobName
    inode: int


def directories(queue: Path) -> Iterator[Found | Finding]:
    """Names only, no file is opened: 100,000 take a fraction of a second."""
    for folder in QUEUE_FOLDERS:
        try:
            entries = list(os.scandir(queue / folder))
        except FileNotFoundError:
            continue
        except OSError as problem:
            if is_lack(problem):
                raise
            text = f"state/queue/{folder} cannot be read ({problem.strerror}): its jobs wait"
            yield Finding("unreadable", 0, text, folder)
            continue
        for entry in entries:
            if durable.is_staging(entry.name):
                continue
            name = parse_directory_name(entry.name)
            if name is None or not entry.is_dir(follow_symlinks=False):
                shown = printable(entry.name, 60)
                yield Finding(
                    "foreign", 0, f"state/queue/{folder}/{shown} is no job of ours; left alone"
                )
            else:
                yield Found(folder, name, entry.inode())


def folder_marks(queue: Path) -> tuple[int, ...] | None:
    """When a name last came to or left each folder (ns); None when that was so lately that
    another change could still carry the same time. Equal marks: nothing to look for."""
    try:
        marks = tuple((queue / folder).stat().st_mtime_ns for folder in QUEUE_FOLDERS)
    except OSError:
        return None
    return None if clock.now_s() * 1e9 - max(marks) < SURE_NS else marks


def read_jobs(queue: Path, found: list[Found]) -> Iterator[tuple[Job, Finding | None]]:
    """Each as `read_job` would, in the order of the disk: 100,000 small files are read in about
    a second from memory, and without wild seeks where they have to come from a disk."""
    folders = {
        name: os.open(queue / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in {one.folder for one in found}
    }
    try:
        for one in sorted(found, key=lambda one: one.inode):
            name = directory_name(one.name.position, one.name.id, one.name.safe_name)
            try:
                meta = decode_meta(_read_small(f"{name}/{META_NAME}", folders[one.folder]))
            except (OSError, msgspec.MsgspecError):
                yield read_job(queue, one)
                continue
            place = one.name
            job = Job(place.id, one.folder, place.position, place.safe_name, meta)
            yield job, _odd_times(job)
    finally:
        for fd in folders.values():
            os.close(fd)


def _read_small(name: str, folder_fd: int) -> bytes:
    """A file that one read takes in; a larger one is left to `read_job`."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        data = os.read(fd, SMALL_BYTES)
    finally:
        os.close(fd)
    if len(data) == SMALL_BYTES:
        raise OSError(f"{name} is large")
    return data


def read_job(queue: Path, found: Found) -> tuple[Job, Finding | None]:
    """The job with its `meta.json`; one that cannot be read gets an empty one and a finding."""
    bare = Job(found.name.id, found.folder, found.name.position, found.name.safe_name, Meta())
    path = bare.path(queue) / META_NAME
    finding = None
    try:
        meta = decode_meta(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as problem:
        reason = "is missing" if isinstance(problem, FileNotFoundError) else "is damaged"
        meta = _rebuilt(bare, queue)
        finding = Finding(
            "damaged",
            bare.id,
            f"job {bare.id} ({bare.safe_name}): its {META_NAME} {reason}; "
            "name, size and content were read again, the rest is lost",
        )
    job = Job(bare.id, bare.folder, bare.position, bare.safe_name, meta)
    return job, finding or _odd_times(job)


def _odd_times(job: Job) -> Finding | None:
    """Whether a hand wrote something into its `meta.json` that is no time."""
    for name in ("not_before", "finished_at"):
        text = getattr(job.meta, name)
        if text is not None and time_or_none(text) is None:
            said = f"{name} in its {META_NAME} is no time and counts as none: {text!r:.60}"
            return Finding("edited", job.id, f"job {job.id} ({job.name}): {said}")
    return None


def _rebuilt(job: Job, queue: Path) -> Meta:
    data = job.path(queue) / DATA_NAME
    priority = job.folder if job.folder in PRIORITIES else "normal"
    bare = Meta(id=job.id, original_name=job.safe_name, priority=priority)
    try:
        size = data.stat().st_size
        return msgspec.structs.replace(bare, bytes=size, file_sha256=hashing.hash_file(data))
    except OSError:
        return bare


@dataclass(frozen=True, slots=True)
class DataMark:
    """What `stat` says of a data file; equal marks mean that it was not touched."""

    inode: int
    bytes: int
    mtime_ns: int


def data_mark(job: Job, queue: Path) -> DataMark | None:
    """None when the data file is not there or is not a plain file."""
    try:
        found = (job.path(queue) / DATA_NAME).lstat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return DataMark(found.st_ino, found.st_size, found.st_mtime_ns)


def check_data(job: Job, queue: Path) -> Finding | None:
    """Whether a job's data is still what was admitted; reads the whole file."""
    named = f"job {job.id} ({job.name})"
    if data_mark(job, queue) is None:
        return Finding("damaged", job.id, f"{named}: its {DATA_NAME} is missing")
    if not job.meta.file_sha256:
        return None
    try:
        same = hashing.hash_file(job.path(queue) / DATA_NAME) == job.meta.file_sha256
    except OSError as problem:
        return Finding("damaged", job.id, f"{named}: its {DATA_NAME} cannot be read: {problem}")
    if same:
        return None
    return Finding("edited", job.id, f"{named}: its {DATA_NAME} was changed after it was queued")
