"""The committed checkpoints of the current model: names, order, verification, commit.

Invariant: the newest checkpoint is the one with the highest global step whose hashes verify.
There is no pointer to lose, and nothing here orders by time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import durable, hashing, manifest, proofs
from trainer_tui.safety.errors import Corrupt, Unreadable, is_damage, is_lack
from trainer_tui.safety.manifest import FileEntry, Manifest, Role

_NAME = re.compile(r"checkpoint-(\d+)(?:\.(\d+))?")
BAD_SUFFIX = ".bad"
HASHING_THREADS = min(4, os.cpu_count() or 1)
WORTH_A_THREAD_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """`generation` > 0: a thinner commit of the same step (its optimizer dropped)."""

    global_step: int
    generation: int = 0

    def __str__(self) -> str:
        tail = f".{self.generation}" if self.generation else ""
        return f"checkpoint-{self.global_step}{tail}"


def parse_name(name: str) -> CheckpointName | None:
    found = _NAME.fullmatch(name)
    return CheckpointName(int(found[1]), int(found[2] or 0)) if found else None


def list_folders(current_model: Path) -> list[Path]:
    """Committed checkpoint folders, newest first, unverified; the ones marked bad are left out."""
    named = []
    for entry in current_model.iterdir() if current_model.is_dir() else ():
        name = parse_name(entry.name)
        if name is not None and entry.is_dir() and not entry.is_symlink():
            named.append((name, entry))
    return [entry for _, entry in sorted(named, reverse=True, key=lambda pair: pair[0])]


def verify(folder: Path) -> Manifest:
    """Check every file of a checkpoint or version against its manifest, large ones side by side.

    Raises:
        Corrupt: the first thing that does not match, in one sentence.
    """
    sealed = manifest.read(folder)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        outcomes = [
            pool.submit(verify_file, folder, entry)
            for entry in sealed.files
            if entry.bytes >= WORTH_A_THREAD_BYTES
        ]
        for entry in sealed.files:
            if entry.bytes < WORTH_A_THREAD_BYTES:
                verify_file(folder, entry)
        for outcome in outcomes:
            outcome.result()
    return sealed


def verify_file(
    folder: Path, entry: FileEntry, should_stop: Callable[[], bool] | None = None
) -> None:
    """Compare size and hash.

    Raises:
        Corrupt: it is another one, or none; Unreadable: nobody knows which, for want of rights.
        GaveWay: `should_stop` said so.
    """
    path = folder / entry.name
    try:
        size = path.lstat().st_size
        if size != entry.bytes:
            raise Corrupt(f"{folder.name}: {entry.name} has {size} bytes, not {entry.bytes}")
        if hashing.hash_file(path, should_stop) != entry.sha256:
            raise Corrupt(f"{folder.name}: {entry.name} does not match its hash")
    except FileNotFoundError:
        raise Corrupt(f"{folder.name}: {entry.name} is missing") from None
    except OSError as problem:
        if is_lack(problem):
            raise
        kind = Corrupt if is_damage(problem) else Unreadable
        raise kind(f"{folder.name}: {entry.name} cannot be read: {problem.strerror}") from None


@dataclass(frozen=True, slots=True)
class Newest:
    """The point to go on from, and the damaged ones that were passed over."""

    folder: Path
    manifest: Manifest
    passed_over: tuple[str, ...]


def newest_verified(current_model: Path, *, believe_note: bool = False) -> Newest | None:
    """The checkpoint to resume from; None when nothing was ever committed.

    Args:
        believe_note: what a restore hashed a moment ago is not hashed again (`proofs`).

    Raises:
        Corrupt: checkpoints exist and none verifies. Training must not start at step 0 then.
    """
    problems: list[str] = []
    for folder in list_folders(current_model):
        try:
            if believe_note and proofs.just_proven(folder, sealed := manifest.read(folder)):
                return Newest(folder, sealed, tuple(problems))
            return Newest(folder, verify(folder), tuple(problems))
        except Corrupt as problem:
            problems.append(problem.message)
    if problems:
        raise Corrupt(
            f"no checkpoint verifies: {'; '.join(problems)}",
            "restore a version: trainer-tui versions list, then trainer-tui versions restore vNNN",
        )
    return None


def entry_for(folder: Path, name: str, role: Role) -> FileEntry:
    """Describe a file already written into a staging folder (reads it back to hash it)."""
    path = folder / name
    return FileEntry(name, path.stat().st_size, hashing.hash_file(path), role)


def commit(staging: Path, final: Path, sealed: bytes) -> None:
    """Turn a staging folder, whose files are all fsynced, into a checkpoint.

    Raises:
        FileExistsError: a checkpoint of that name is there already.
        OSError: nothing was committed.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists")
    durable.write_new(staging / manifest.MANIFEST_NAME, sealed, 0o400)
    durable.sync_directory(staging)
    durable.rename(staging, final)
