"""Making a staged job: copy, hash, duplicate check, report, tokens, `meta.json`; then it waits to
be admitted. Only staging directories are written here, and the token cache.

Invariant: an answer `Staged` means a complete, fsynced directory; any other outcome leaves nothing
behind, and the original untouched in both cases.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer_tui.data import token_cache
from trainer_tui.data.encode import limits_of
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import RowProblem
from trainer_tui.data.template import EncodedRow
from trainer_tui.queue import copies, intake, originals, report, trained
from trainer_tui.queue.job import (
    DATA_NAME,
    ERROR_NAME,
    META_NAME,
    REJECTS_NAME,
    REPORT_NAME,
    JobError,
    Meta,
    decode_meta,
    encode_error,
    encode_meta,
    names_of,
)
from trainer_tui.queue.known import Known
from trainer_tui.queue.report import Context, Report
from trainer_tui.queue.row_hashes import ROW_HASHES_NAME
from trainer_tui.queue.tally import Reject
from trainer_tui.safety import durable
from trainer_tui.safety.errors import DataProblem, Refused
from trainer_tui.safety.workspace import Workspace


class SameContent(Refused):
    """The file's content is a job already (or was); only for files added by name."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. `keep_original`: added by name, so a duplicate is an error to answer with;
    a duplicate in the inbox becomes a failed job that says so. `unchanged_s`: how long the file was
    seen to look the same."""

    path: Path
    priority: str = "normal"
    again: bool = False
    keep_original: bool = False
    added_by: str = ""
    unchanged_s: float = 0.0

    @property
    def rested(self) -> bool:
        """Whether it may be taken where nobody can tell if it has a writer. Who names a file says
        that it is whole, and keeps it."""
        return self.keep_original or self.unchanged_s >= intake.FOREIGN_SETTLE_S


@dataclass(frozen=True, slots=True)
class Staged:
    folder: Path
    meta: Meta


class Memory:
    """What a worker keeps between files, so that the thousandth costs what the first did."""

    def __init__(self, workspace: Workspace) -> None:
        self.known = Known(workspace.queue)
        self.room = token_cache.CacheRoom(workspace.cache)


def stage(
    workspace: Workspace, order: Order, context: Context, memory: Memory | None = None
) -> Staged:
    """Take a file.

    Raises:
        Busy: not now.
        SameContent, Refused: never as it is.
        OSError: the disk.
    """
    folder = _new_folder(workspace)
    try:
        return _stage(workspace, folder, order, context, memory or Memory(workspace))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _stage(
    workspace: Workspace, folder: Path, order: Order, context: Context, memory: Memory
) -> Staged:
    names = names_of(order.path)
    meta = Meta(**names, priority=order.priority, added_by=order.added_by)
    try:
        limits = limits_of(context.config.intake)
        copied = intake.copy_into(order.path, folder, limits, rested=order.rested)
    except DataProblem as problem:
        if order.keep_original:
            raise
        return _unreadable(folder, order, meta, problem, context)
    meta = msgspec.structs.replace(
        meta, source=copied.source, file_sha256=copied.sha256, bytes=copied.bytes
    )
    # The daemon asks again when it admits: between the two another file may have come.
    holder = None if order.again else memory.known.holder_of(copied.sha256)
    if holder is not None:
        return _duplicate(folder, order, meta, holder)
    found = _report(workspace, folder, folder / DATA_NAME, meta, context, memory)
    return _judged(folder, meta, found, context)


def check(workspace: Workspace, job: Path, context: Context, memory: Memory) -> Staged:
    """Make the report of a job again, beside it; `Queue.take_report` brings the two together.

    Raises:
        FileNotFoundError: the job was moved or removed meanwhile.
        OSError: the disk.
    """
    meta = decode_meta((job / META_NAME).read_bytes())
    folder = _new_folder(workspace)
    try:
        found = _report(workspace, folder, job / DATA_NAME, meta, context, memory)
        return _judged(folder, meta, found, context)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def staging_prefix(pid: int) -> str:
    """Of everything that this worker stages: whoever ends it can clear that away."""
    return f"{durable.STAGING_PREFIX}{pid}-"


def _new_folder(workspace: Workspace) -> Path:
    name = f"{staging_prefix(os.getpid())}{secrets.token_hex(8)}"
    folder = workspace.queue / name
    try:
        durable.make_directory(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _judged(folder: Path, meta: Meta, found: Report, context: Context) -> Staged:
    if found.verdict == "block":
        error = JobError(
            error_class="blocked",
            message=found.summary,
            hint=next((reason.hint for reason in found.reasons if reason.hint), ""),
        )
        durable.write_new(folder / ERROR_NAME, encode_error(error))
    return _finish(folder, _with_report(meta, found, context))


def _report(
    workspace: Workspace, folder: Path, path: Path, meta: Meta, context: Context, memory: Memory
) -> Report:
    """Report and tokens in one pass over the rows in `path`, written into `folder`."""
    keep, key = None, ""
    if context.template is not None:
        options = TokenOptions.from_config(context.config)
        key = token_cache.token_key(meta.file_sha256, context.template, options)

        def keep(rows: Iterator[EncodedRow | RowProblem]) -> None:
            tokens = token_cache.build(workspace.cache, key, meta.file_sha256, rows)
            hashes = trained.hashes_of(tokens).tobytes()
            tokens.close()
            durable.write_new(folder / ROW_HASHES_NAME, hashes, 0o400)

    try:
        outcome = report.make(path, meta.original_name, context, keep=keep)
        rejects = outcome.rejects
        found = outcome.report
    except DataProblem as problem:
        found, rejects = report.unreadable(meta.original_name, meta.bytes, problem, context), []
    _write_report(folder, found, rejects)
    if key:
        memory.room.built(key, int(context.config.disk.cache_gb * 1e9))
    return found


def _write_report(folder: Path, found: Report, rejects: list[Reject]) -> None:
    data = msgspec.json.format(msgspec.json.encode(found), indent=1)
    durable.write_new(folder / REPORT_NAME, data, 0o400)
    if rejects:
        encoder = msgspec.json.Encoder()
        lines = encoder.encode_lines(rejects)
        durable.write_new(folder / REJECTS_NAME, lines, 0o400)


def _with_report(meta: Meta, found: Report, context: Context) -> Meta:
    tokenised = context.template is not None
    verdict = found.verdict if tokenised or found.verdict == "block" else "unchecked"
    return msgspec.structs.replace(
        meta,
        rows=found.rows,
        kept_rows=found.kept_rows,
        rejected_rows=found.rejected_rows,
        documents=found.documents,
        tokens=found.tokens or 0,
        supervised_tokens=found.supervised_tokens or 0,
        steps=found.steps or 0,
        verdict=verdict,
        summary=found.summary,
        checked_with=context.key,
    )


def _duplicate(folder: Path, order: Order, meta: Meta, holder: int) -> Staged:
    message = f"{meta.original_name} has the same content as job {holder}"
    if not order.keep_original and originals.already_taken(folder.parent, holder, meta.source):
        raise Refused(
            f"{meta.original_name} is job {holder} already, but cannot be removed from the inbox",
            "let the daemon's user write to the folder, or remove the file",
        )
    if order.keep_original:
        raise SameContent(message, "to train it once more, add it with --again")
    return _finish(folder, copies.set_aside(folder, meta, message))


def _unreadable(
    folder: Path, order: Order, meta: Meta, problem: DataProblem, context: Context
) -> Staged:
    """A file of the inbox that is no JSON lines at all: kept as it is, as a failed job."""
    (folder / DATA_NAME).unlink(missing_ok=True)
    fd = intake.open_source(order.path, rested=order.rested)
    try:
        source = intake.source_of(os.fstat(fd))
        sha256, size = durable.copy_hashed(fd, folder / DATA_NAME, 0o400)
    finally:
        os.close(fd)
    found = report.unreadable(meta.original_name, size, problem, context)
    _write_report(folder, found, [])
    error = JobError(error_class="unreadable", message=problem.message, hint=problem.hint)
    durable.write_new(folder / ERROR_NAME, encode_error(error))
    meta = msgspec.structs.replace(meta, source=source, file_sha256=sha256, bytes=size)
    return _finish(folder, msgspec.structs.replace(meta, verdict="block", summary=problem.message))


def _finish(folder: Path, meta: Meta) -> Staged:
    durable.write_new(folder / META_NAME, encode_meta(meta))
    durable.sync_directory(folder)
    return Staged(folder, meta)
