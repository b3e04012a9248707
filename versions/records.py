"""What is written down about a version, a branch and an emergency backup, and what is shown.

Invariant: `VERSION.json` is sealed with its own hash and names the hash of the manifest beside
it. Records are written once and never changed; pins and damage are marks kept outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.errors import Corrupt, Unreadable, is_lack
from trainer_tui.safety.manifest import FileEntry, LedgerEntry, LedgerHead
from trainer_tui.versions.best import Figure
from trainer_tui.versions.layout import Layout

VERSION_RECORD = "VERSION.json"
ORIGIN_RECORD = "ORIGIN.json"
FILES_LISTED = 1000  # a version lists this many trained files at most; the ledger has them all

# "unreadable": not now, for want of rights or of a disk; it may be sound, so it is never let go of.
State = Literal["ok", "corrupt", "incomplete", "unreadable"]
Record = TypeVar("Record", bound=msgspec.Struct)


class TrainedFile(msgspec.Struct, frozen=True):
    """One completed job as a version remembers it. Losses are on the fixed validation set."""

    job_id: int
    name: str
    file_sha256: str
    rows: int
    tokens: int
    supervised_tokens: int
    seconds: float
    val_before: float | None
    val_after: float | None

    @staticmethod
    def of(entry: LedgerEntry) -> TrainedFile:
        return TrainedFile(
            job_id=entry.job_id,
            name=entry.name,
            file_sha256=entry.file_sha256,
            rows=entry.rows,
            tokens=entry.tokens,
            supervised_tokens=entry.supervised_tokens,
            seconds=entry.seconds,
            val_before=entry.val_before,
            val_after=entry.val_after,
        )

    @property
    def val_change(self) -> float | None:
        """Below zero: the file made the model better on the fixed set."""
        if self.val_before is None or self.val_after is None:
            return None
        return self.val_after - self.val_before

    def as_dict(self) -> dict[str, Any]:
        return {
            **msgspec.structs.asdict(self),
            "minutes": round(self.seconds / 60, 2),
            "val_change": self.val_change,
        }


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`VERSION.json`. `parent`: the version it grew from (empty: none). `files`: trained since
    the parent, newest first, `files_more` when there were more than are listed."""

    format: int = 1
    number: int
    name: str
    description: str
    automatic: bool
    created_at: str
    parent: str
    checkpoint: str
    lineage: int
    global_step: int
    tokens: int
    supervised_tokens: int
    files: list[TrainedFile]
    files_more: bool
    config_hash: str
    template_hash: str
    tokenizer_hash: str
    base_model: str
    validation: dict[str, float]
    hashes: list[FileEntry]
    ledger: LedgerHead | None
    manifest_sha256: str
    sha256: str = ""


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """How a lineage began: `source` (a version or emergency backup), which stood at
    (`from_lineage`, `from_step`), was committed again as `checkpoint` at `global_step`;
    `left` is the checkpoint that was the newest until then (empty: there was none)."""

    lineage: int
    from_lineage: int
    from_step: int
    global_step: int
    source: str
    checkpoint: str
    left: str
    emergency: str
    reason: str
    at: str


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """`ORIGIN.json` of an emergency backup: whose files these are, and before what."""

    number: int
    checkpoint: str
    why: str
    at: str


@dataclass(frozen=True, slots=True)
class Version:
    """A version as it stands on disk. `record` is None when `VERSION.json` cannot be read.

    `live`: the current model grew from it; `current`: the nearest such one. `bytes` counts each
    file whole, shared or not. `figure`: of the fixed set, with the set it is of.
    """

    number: int
    name: str
    folder: Path
    state: State
    problem: str
    record: VersionRecord | None
    bytes: int
    pinned: bool
    weights_only: bool
    live: bool
    current: bool
    figure: Figure | None = None

    @property
    def global_step(self) -> int:
        return self.record.global_step if self.record else -1

    @property
    def lineage(self) -> int:
        return self.record.lineage if self.record else -1

    @property
    def validation(self) -> dict[str, float]:
        return self.record.validation if self.record else {}

    @property
    def created_at(self) -> str:
        return self.record.created_at if self.record else ""

    def as_dict(self, files_at_most: int = FILES_LISTED) -> dict[str, Any]:
        """The API's Version; unknown figures are None."""
        record = self.record
        files = record.files if record else []
        return {
            "number": self.number,
            "name": self.name,
            "description": record.description if record else "",
            "created_at": record.created_at if record else None,
            "automatic": bool(record and record.automatic),
            "global_step": record.global_step if record else None,
            "lineage": record.lineage if record else None,
            "parent": (record.parent or None) if record else None,
            "checkpoint": record.checkpoint if record else None,
            "tokens": record.tokens if record else None,
            "supervised_tokens": record.supervised_tokens if record else None,
            "files": [file.as_dict() for file in files[:files_at_most]],
            "files_more": len(files) > files_at_most or bool(record and record.files_more),
            "validation": self.validation,
            "validation_set": (self.figure.set_id or None) if self.figure else None,
            "measured_at": self.figure.step if self.figure else None,
            "config_hash": record.config_hash if record else None,
            "template_hash": record.template_hash if record else None,
            "tokenizer_hash": record.tokenizer_hash if record else None,
            "bytes": self.bytes,
            "pinned": self.pinned,
            "weights_only": self.weights_only,
            "live": self.live,
            "current": self.current,
            "state": self.state,
            "problem": self.problem or None,
        }


_record_decoder = msgspec.json.Decoder(VersionRecord)


def seal(record: VersionRecord) -> bytes:
    """The bytes of `VERSION.json`; its `sha256` covers everything else in it."""
    sealed = msgspec.structs.replace(record, sha256=_digest(record))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1)


def _digest(record: VersionRecord) -> str:
    bare = msgspec.structs.replace(record, sha256="")
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def read_version(folder: Path) -> VersionRecord:
    """Raises Corrupt when it is missing, unreadable, damaged or changed since it was sealed."""
    try:
        record = _record_decoder.decode((folder / VERSION_RECORD).read_bytes())
    except FileNotFoundError:
        raise Corrupt(f"{folder.name} has no {VERSION_RECORD}") from None
    except msgspec.MsgspecError as problem:
        raise Corrupt(f"{folder.name}: {VERSION_RECORD} is damaged: {problem}") from None
    except OSError as problem:
        if is_lack(problem):
            raise
        text = f"{VERSION_RECORD} cannot be read: {problem.strerror}"
        raise Unreadable(f"{folder.name}: {text}") from None
    if _digest(record) != record.sha256:
        raise Corrupt(f"{folder.name}: {VERSION_RECORD} was changed after it was sealed")
    return record


def read_origin(folder: Path) -> Origin | None:
    """None when the record cannot be read; the backup's own manifest is what counts."""
    return _read_record(folder / ORIGIN_RECORD, msgspec.json.Decoder(Origin).decode)


def write_branch(layout: Layout, branch: Branch) -> None:
    durable.make_directory(layout.branches)
    path = layout.branches / f"{branch.lineage:06d}.json"
    durable.replace(path, msgspec.json.format(msgspec.json.encode(branch), indent=1))


def read_branches(layout: Layout) -> dict[int, Branch]:
    """Every branch ever begun, by lineage. Lineage 0 began with the base model and has none."""
    decode = msgspec.json.Decoder(Branch).decode
    paths = sorted(layout.branches.glob("*.json")) if layout.branches.is_dir() else []
    found = (_read_record(path, decode) for path in paths)
    return {branch.lineage: branch for branch in found if branch is not None}


def _read_record(path: Path, decode: Callable[[bytes], Record]) -> Record | None:
    try:
        return decode(path.read_bytes())
    except msgspec.MsgspecError:
        return None
    except OSError as problem:
        if is_lack(problem):
            raise
        return None
