"""A second file with the content of a job: a failed job that says whose copy it is.

Limits: only what came by the inbox; who names a file is answered.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from trainer_tui.queue.job import (
    ERROR_NAME,
    META_NAME,
    RETRY_COMMAND,
    JobError,
    Meta,
    decode_meta,
    encode_error,
    encode_meta,
)
from trainer_tui.safety import durable


def set_aside(staged: Path, meta: Meta, message: str) -> Meta:
    """Give a staged directory its `error.json`; its `meta.json` is the caller's to write."""
    hint = f"to train it once more: {RETRY_COMMAND} --accept"
    error = JobError(error_class="duplicate", message=message, hint=hint)
    durable.write_new(staged / ERROR_NAME, encode_error(error))
    return msgspec.structs.replace(meta, verdict="block", summary=message)


def set_complete_aside(staged: Path, message: str) -> None:
    """The same for one that was complete: another of its content was admitted meanwhile."""
    meta = set_aside(staged, decode_meta((staged / META_NAME).read_bytes()), message)
    durable.replace(staged / META_NAME, encode_meta(meta))
