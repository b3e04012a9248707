"""A job's data report made once more, when what it was made against has changed: there was no
model to count tokens with, or `max_length`, the tokenizer or a limit is another one now.

Invariant: a check writes only a staging directory; `adopt` moves its files into the job and its
`meta.json` last, so one cut short is simply done again. What a person accepted stays accepted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_tui.queue.job import (
    META_NAME,
    REJECTS_NAME,
    REPORT_NAME,
    Job,
    Meta,
    decode_meta,
    read_error,
    with_number,
)
from trainer_tui.queue.row_hashes import ROW_HASHES_NAME
from trainer_tui.safety import config, durable
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import NotFound
from trainer_tui.safety.workspace import PRIORITIES, Workspace

if TYPE_CHECKING:
    from trainer_tui.queue.store import Queue

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_NO_FILE = (0, 0)
_FROM_REPORT = (
    *("rows", "kept_rows", "rejected_rows", "documents", "tokens", "supervised_tokens", "steps"),
    *("verdict", "summary", "checked_with"),
)


def settings_in_force(workspace: Workspace) -> Config:
    """The settings that a file would be trained with: guarded keys as they were approved, and the
    last good ones while `config.toml` cannot be used.

    Raises:
        ConfigProblem: there are none that can be used.
    """
    settings, _ = config.load_or_last_good(workspace.config_file, workspace.last_good_config)
    try:
        approved = json.loads((workspace.state / "approvals.json").read_bytes())["values"]
        kept = {key: approved[key] for key in config.APPROVAL_KEYS if key in approved}
    except (OSError, ValueError, KeyError, TypeError):
        return settings  # no daemon has run here, or it says itself that they are damaged
    return settings.model_copy(update=kept)


def key_of(settings: Config, root: Path) -> str:
    """16 hex digits for everything a verdict depends on besides the file; "" when there is no
    tokenizer to count with. Costs three looks at the disk."""
    folder = config.base_model_folder(settings, root)
    marks = [_mark(folder / name) for name in TOKENIZER_NAMES]
    if marks[0] == _NO_FILE:
        return ""
    intake = settings.intake.model_dump(mode="json", exclude={"quiet_hours"})
    made_of = [str(folder), marks, settings.max_length, intake]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return _NO_FILE
    return found.st_size, found.st_mtime_ns


def is_outdated(meta: Meta, key: str) -> bool:
    """Whether the report has to be made again before a waiting job may start. One made by a
    release that did not note its key counts as it is; one that blocks was cut short on its way to
    `failed/`, or a hand brought it back."""
    if meta.verdict == "block" and not meta.accepted:
        return True
    if not may_differ(meta, key):
        return False
    return bool(meta.checked_with) or meta.verdict == "unchecked"


def may_differ(meta: Meta, key: str) -> bool:
    """Whether a report made now could come to another verdict."""
    return bool(key) and meta.checked_with != key


def adopt(queue: Queue, job_id: int, staged: Path) -> Job | None:
    """See `Queue.take_report`; called with the queue's lock held."""
    try:
        job = queue.get(job_id)
    except NotFound:
        return None
    new = decode_meta((staged / META_NAME).read_bytes())
    if job.folder not in PRIORITIES or new.file_sha256 != job.meta.file_sha256:
        return None
    folder = queue.path(job)
    for name in (REPORT_NAME, REJECTS_NAME, ROW_HASHES_NAME):
        if (staged / name).exists():
            durable.rename(staged / name, folder / name)
        else:
            durable.remove_file(folder / name)
    job = queue.note_report(job_id, {name: getattr(new, name) for name in _FROM_REPORT})
    if new.verdict == "block" and not job.meta.accepted:
        error = read_error(staged)
        assert error is not None
        return queue.fail(job_id, with_number(error, job_id))
    return job
