"""What a checkpoint says of itself, and of everything trained before it.

The rename of a folder with a sealed `MANIFEST.json` is the only commit point of training. The
manifest names every file with size and hash, the cursors of started files, and the head of the
ledger: hash-linked segments that list every completed job, newest first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.errors import Corrupt, Unreadable, is_lack

MANIFEST_NAME = "MANIFEST.json"
FORMAT = 1
Role = Literal["weights", "optimizer", "state", "model"]


class FileEntry(msgspec.Struct, frozen=True):
    """`role`: weights | optimizer | state (RNG and the like) | model (config and tokenizer)."""

    name: str
    bytes: int
    sha256: str
    role: Role


class Cursor(msgspec.Struct, frozen=True):
    """Where a started file stands: step `step_index` of epoch `epoch` comes next.

    `plan` is the hash of everything the plan is a function of; another plan refuses the cursor.
    `rows_excluded`: line numbers of rows that made a step fail. They are left out of the steps
    from here on; the plan itself does not know them, so every other row keeps its place.
    """

    job_id: int
    file_sha256: str
    plan: str
    epoch: int
    step_index: int
    steps: int
    validation_set: str = ""
    rows_excluded: list[int] = []


class LedgerHead(msgspec.Struct, frozen=True):
    sequence: int
    sha256: str


class LedgerEntry(msgspec.Struct, frozen=True):
    """One completed job. `steps` counts the steps of its plan over all epochs. `rows_excluded`:
    line numbers of rows that made a step fail and were left out; they are not in `rows`."""

    job_id: int
    name: str
    file_sha256: str
    rows: int
    tokens: int
    supervised_tokens: int
    steps: int
    epochs: int
    global_step: int
    completed_at: str
    seconds: float = 0.0
    val_before: float | None = None
    val_after: float | None = None
    rows_excluded: list[int] = []


class LedgerSegment(msgspec.Struct, frozen=True):
    sequence: int
    previous: str
    entries: list[LedgerEntry]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`parent`: the checkpoint or version this one came from. `schedule_origin`: the global step
    at which the learning-rate schedule began; `warmup_origin`: the same for the last warm-up."""

    format: int = FORMAT
    created_at: str
    global_step: int
    lineage: int
    parent: str
    reason: str
    tokens: int
    supervised_tokens: int
    cursors: list[Cursor]
    lr_factor: float
    schedule_origin: int
    warmup_origin: int
    config_hash: str
    template_hash: str
    tokenizer_hash: str
    base_model: str
    weights_only: bool
    ledger: LedgerHead | None
    files: list[FileEntry]
    validation: dict[str, float] = {}
    extra: dict[str, Any] = {}
    sha256: str = ""


_decoder = msgspec.json.Decoder(Manifest)
_segment_decoder = msgspec.json.Decoder(LedgerSegment)


def seal(manifest: Manifest) -> bytes:
    """The bytes to store: JSON whose `sha256` covers everything else in it.

    Sealed as it will be read, so that no value (an int where a float belongs) can make a committed
    checkpoint unreadable. A validation loss that is not finite is no loss and is left out.

    Raises:
        msgspec.ValidationError: a value is not of its field's type; nothing may be committed.
    """
    finite = {name: loss for name, loss in manifest.validation.items() if math.isfinite(loss)}
    bare = msgspec.structs.replace(manifest, validation=finite, sha256="")
    bare = _decoder.decode(msgspec.json.encode(bare))
    sealed = msgspec.structs.replace(bare, sha256=_digest(bare))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1)


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint or version folder, its own hash checked.

    Raises:
        Corrupt: missing, unreadable (Unreadable), or not what was sealed.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        raise Corrupt(f"{folder.name} has no {MANIFEST_NAME}", "it was never committed") from None
    except msgspec.MsgspecError as problem:
        raise Corrupt(f"{folder.name}: {MANIFEST_NAME} is damaged: {problem}") from None
    except OSError as problem:
        if is_lack(problem):
            raise
        text = f"{MANIFEST_NAME} cannot be read: {problem.strerror}"
        raise Unreadable(f"{folder.name}: {text}") from problem
    if manifest.format != FORMAT:
        text = f"{folder.name} is of format {manifest.format}, this program reads {FORMAT}"
        raise Corrupt(text, "it was written by another release of trainer-tui")
    if _digest(msgspec.structs.replace(manifest, sha256="")) != manifest.sha256:
        raise Corrupt(f"{folder.name}: {MANIFEST_NAME} was changed after it was sealed")
    return manifest


def write_segment(ledger: Path, head: LedgerHead | None, entries: list[LedgerEntry]) -> LedgerHead:
    """Store a new ledger segment durably and return the head that a manifest may name.

    A segment that no committed manifest names is harmless: nobody looks for it.
    """
    sequence = head.sequence + 1 if head else 1
    segment = LedgerSegment(sequence, head.sha256 if head else "", entries)
    data = msgspec.json.format(msgspec.json.encode(segment), indent=1)
    _segment_decoder.decode(data)  # what cannot be read again must not be written
    digest = hashlib.sha256(data).hexdigest()
    path = segment_path(ledger, LedgerHead(sequence, digest))
    if not path.exists():
        durable.replace(path, data, 0o400)
    return LedgerHead(sequence, digest)


def segment_path(ledger: Path, head: LedgerHead) -> Path:
    return ledger / f"{head.sequence:08d}-{head.sha256[:16]}.json"


def ledger_entries(ledger: Path, head: LedgerHead | None) -> Iterator[LedgerEntry]:
    """Every completed job, newest first, each segment checked against its hash.

    Raises:
        Corrupt: a segment is missing or damaged.
    """
    while head is not None:
        segment = read_segment(ledger, head)
        yield from reversed(segment.entries)
        head = previous_head(segment)


def read_segment(ledger: Path, head: LedgerHead) -> LedgerSegment:
    """The segment that `head` names. Raises Corrupt: missing, unreadable or damaged."""
    path = segment_path(ledger, head)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"ledger segment {path.name} is missing") from None
    except OSError as problem:
        if is_lack(problem):
            raise
        text = f"ledger segment {path.name} cannot be read: {problem.strerror}"
        raise Unreadable(text) from problem
    if hashlib.sha256(data).hexdigest() != head.sha256:
        raise Corrupt(f"ledger segment {path.name} is damaged")
    return _segment_decoder.decode(data)


def previous_head(segment: LedgerSegment) -> LedgerHead | None:
    """The head before this segment; None for the first."""
    return LedgerHead(segment.sequence - 1, segment.previous) if segment.previous else None


def completed_jobs(ledger: Path, head: LedgerHead | None, wanted: set[int]) -> set[int]:
    """Which of `wanted` the ledger lists as completed. Stops as soon as all are found."""
    found: set[int] = set()
    for entry in ledger_entries(ledger, head) if wanted else ():
        if entry.job_id in wanted:
            found.add(entry.job_id)
            if found == wanted:
                break
    return found
