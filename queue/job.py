"""A job: a directory whose place is its state, whose name is its order, with `meta.json` inside.

Invariant: what the directory's place and name say is never repeated in `meta.json` as truth; the
`priority` there is the one to return to after a retry.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from trainer_tui.queue.order import parse_position, position_text
from trainer_tui.safety.text import file_name_text, safe_name
from trainer_tui.safety.workspace import PRIORITIES

DATA_NAME, META_NAME, REPORT_NAME = "data.jsonl", "meta.json", "report.json"
REJECTS_NAME, ERROR_NAME = "rejects.jsonl", "error.json"
PROCESSING, COMPLETED, FAILED = "processing", "recently_completed", "failed"

State = Literal["waiting", "processing", "completed", "failed"]
Verdict = Literal["ok", "warn", "block", "unchecked"]
RETRY_COMMAND = "trainer-tui queue retry ID"  # of a job that has no number yet: see `numbered`
_STATES: dict[str, State] = {
    PROCESSING: "processing",
    COMPLETED: "completed",
    FAILED: "failed",
}
_NAME = re.compile(r"(\d{20})-(\d{1,19})-([A-Za-z0-9._+=-]{1,80})")


class Source(msgspec.Struct, frozen=True, gc=False):
    """Which file it was, so that a kill between taking and removing it is recognised."""

    device: int = 0
    inode: int = 0
    bytes: int = 0
    mtime_ns: int = 0


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """`result`: "" while it runs | progress | crashed | interrupted | completed."""

    at: str
    result: str = ""
    error_class: str = ""


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`meta.json`. Times are ISO 8601 in UTC; unknown fields are left out of the way."""

    id: int = 0
    original_name: str = ""
    original_name_bytes: str = ""
    source: Source = Source()
    file_sha256: str = ""
    bytes: int = 0
    rows: int = 0
    kept_rows: int = 0
    rejected_rows: int = 0
    documents: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    steps: int = 0
    verdict: Verdict = "unchecked"
    summary: str = ""
    checked_with: str = ""  # check.key_of what the verdict was made against
    priority: str = "normal"
    added_at: str = ""
    added_by: str = ""
    attempts: tuple[Attempt, ...] = ()
    held: bool = False
    not_before: str | None = None
    parent_job: int | None = None
    after_restore: bool = False  # it waits because a restore took its parent out of the model
    accepted: bool = False
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    val_before: float | None = None
    val_after: float | None = None
    skipped_fraction: float | None = None
    trained_rows: int = 0  # what is left of the kept ones without validation set and holdout
    trained_tokens: int = 0  # in all epochs


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """`error.json`. Field `class` in JSON."""

    error_class: str = msgspec.field(name="class")
    message: str
    hint: str = ""
    line: int = 0
    phase: str = ""
    step: int = 0
    stack: str = ""
    at: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job is and what its `meta.json` said when it was read."""

    id: int
    folder: str  # one of workspace.QUEUE_FOLDERS
    position: int
    safe_name: str
    meta: Meta

    @property
    def state(self) -> State:
        return _STATES.get(self.folder, "waiting")

    @property
    def priority(self) -> str:
        return self.folder if self.folder in PRIORITIES else self.meta.priority

    @property
    def name(self) -> str:
        """What people call it; safe to show."""
        return self.meta.original_name or self.safe_name

    @property
    def directory(self) -> str:
        """Its directory below `state/queue/`."""
        return f"{self.folder}/{directory_name(self.position, self.id, self.safe_name)}"

    def path(self, queue: Path) -> Path:
        return queue / self.directory

    @property
    def attempts_without_progress(self) -> int:
        """Starts since the last committed progress; what the limit of attempts counts."""
        count = 0
        for attempt in reversed(self.meta.attempts):
            if attempt.result in ("progress", "completed"):
                break
            if attempt.result != "interrupted":
                count += 1
        return count


def directory_name(position: int, job_id: int, name: str) -> str:
    return f"{position_text(position)}-{job_id}-{name}"


@dataclass(frozen=True, slots=True)
class JobName:
    position: int
    id: int
    safe_name: str


def parse_directory_name(name: str) -> JobName | None:
    """What a job directory's name says; None when it is not one."""
    found = _NAME.fullmatch(name)
    position = parse_position(found[1]) if found else None
    if found is None or position is None:
        return None
    return JobName(position, int(found[2]), found[3])


_meta_decoder = msgspec.json.Decoder(Meta)
_error_decoder = msgspec.json.Decoder(JobError)


def encode_meta(meta: Meta) -> bytes:
    return msgspec.json.format(msgspec.json.encode(meta), indent=1)


def decode_meta(data: bytes) -> Meta:
    """Raises msgspec.MsgspecError."""
    meta = _meta_decoder.decode(data)
    for name in ("summary", "priority", "added_by"):
        # One text for 100,000 jobs instead of one each; nobody else has seen this object yet.
        msgspec.structs.force_setattr(meta, name, sys.intern(getattr(meta, name)))
    return meta


def encode_error(error: JobError) -> bytes:
    return msgspec.json.format(msgspec.json.encode(error), indent=1)


def read_error(folder: Path) -> JobError | None:
    """A job's `error.json`; None when there is none or it cannot be read."""
    try:
        return _error_decoder.decode((folder / ERROR_NAME).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def with_number(error: JobError, job_id: int) -> JobError:
    return msgspec.structs.replace(error, hint=numbered(error.hint.encode(), job_id).decode())


def numbered(text: bytes, job_id: int) -> bytes:
    """A report's or an error's commands as they are typed."""
    command = RETRY_COMMAND.encode()
    return text.replace(command, command[:-2] + str(job_id).encode())


def names_of(path: Path) -> dict[str, Any]:
    """The `Meta` fields that keep a file's name: as text to show, and its bytes where the text
    is not the whole name."""
    raw = os.fsencode(path.name)
    shown = file_name_text(raw)
    encoded = "" if shown.encode() == raw else base64.b64encode(raw).decode()
    return {"original_name": shown, "original_name_bytes": encoded}


def safe_name_of(path: Path) -> str:
    return safe_name(os.fsencode(path.name))
