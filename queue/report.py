"""The data report: everything about a file that decides whether it should be trained.

`python -m trainer_tui.queue.report FILE [--workspace DIR] [--json] [--sample N]` needs no daemon
and no torch. Exit 0 ok or warn, 1 block, 2 usage. The whole file is read, through the code that
training uses; memory stays flat (rows are counted, not kept).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer_tui.data.encode import encode_rows, limits_of
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.packing import PlanOptions, plan_epoch
from trainer_tui.data.row_reader import Counts, read_evenly, read_rows
from trainer_tui.data.rows import Conversation, RowProblem
from trainer_tui.data.template import ChatTemplate, EncodedRow
from trainer_tui.queue.tally import Reject, Sample, Tally
from trainer_tui.queue.verdict import Facts, Reason, judge, verdict_of
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import DataProblem

REJECTS_SHOWN = 20
PLANNED_DOCUMENTS = 500_000  # above, steps are predicted from token counts
Hashes = NDArray[np.uint64]


class Lengths(msgspec.Struct, frozen=True):
    """Tokens of a row."""

    p50: int
    p90: int
    p95: int
    p99: int
    longest: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`. Times in seconds, sizes in bytes; null where it could not be known."""

    file: str
    bytes: int
    rows: int
    kept_rows: int
    rejected_rows: int
    blank_lines: int
    documents: int
    tokens: int | None
    supervised_tokens: int | None
    lost_supervised_tokens: int | None
    over_length_rows: int | None
    lengths: Lengths | None
    padding_saved: float | None
    steps: int | None
    seconds: float | None
    peak_memory_bytes: int | None
    duplicate_rows: int
    conflicting_prompts: int
    trained_before_rows: int
    validation_rows: int
    injected_tokens: int
    extra_keys: dict[str, int]
    notes: list[str]
    problems: dict[str, int]
    rejects: list[Reject]
    samples: list[Sample]
    max_length: int
    sampled: int | None
    verdict: str
    summary: str
    reasons: list[Reason]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a report is made against. `trained`: first 8 bytes of the identities of rows trained
    before, sorted. `tokens_per_s`: measured lately, None when unknown. `key`: of settings and
    tokenizer, see `check.key_of`."""

    config: Config
    template: ChatTemplate | None
    template_notes: tuple[str, ...] = ()
    validation: frozenset[bytes] = frozenset()
    trained: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    tokens_per_s: float | None = None
    parameters: int | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The report and all rejects (the report itself carries the first few)."""

    report: Report
    rejects: list[Reject]


def make(
    path: Path,
    name: str,
    context: Context,
    *,
    sample: int | None = None,
    keep: Callable[[Iterator[EncodedRow | RowProblem]], None] | None = None,
) -> Outcome:
    """Read the file and judge it.

    Args:
        name: what to call it (already safe to show).
        sample: only so many rows, at even distances where the file can be entered anywhere.
        keep: reads the whole stream of encoded rows to its end (the token cache's writer), so
            that a file is tokenised once.

    Raises:
        DataProblem: the file as a whole cannot be read as rows.
        OSError: it cannot be read.
    """
    counts, tally = Counts(), Tally()
    limits = limits_of(context.config.intake)
    if sample is None:
        rows = read_rows(path, limits, counts)
    else:
        rows = read_evenly(path, limits, counts, sample)
    if context.template is None:
        _count_plain(rows, tally, context)
    else:
        options = TokenOptions.from_config(context.config)
        encoded = encode_rows(rows, context.template, options)
        watched = _watched(encoded, tally, context, options.max_length)
        (keep or _drain)(watched)
    report = _report(name, counts, tally, context, sample)
    return Outcome(report, tally.rejects)


def unreadable(name: str, size: int, problem: DataProblem, context: Context) -> Report:
    """The report of a file that cannot be read as rows at all."""
    reason = Reason("block", "unreadable", problem.message, problem.hint)
    return _assemble(name, Counts(bytes=size), Tally(), context, None, [reason])


def _drain(rows: Iterator[EncodedRow | RowProblem]) -> None:
    for _ in rows:
        pass


def _count_plain(rows: Iterator[Conversation | RowProblem], tally: Tally, context: Context) -> None:
    for row in rows:
        if isinstance(row, RowProblem):
            tally.reject(row)
        else:
            tally.row(row, context.validation)


def _watched(
    rows: Iterator[EncodedRow | RowProblem], tally: Tally, context: Context, max_length: int
) -> Iterator[EncodedRow | RowProblem]:
    assert context.template is not None
    tokenizer = context.template.tokenizer
    for row in rows:
        if isinstance(row, RowProblem):
            tally.reject(row)
        else:
            tally.row(row.conversation, context.validation)
            tally.encoded(row, tokenizer, max_length)
        yield row


def _report(
    name: str, counts: Counts, tally: Tally, context: Context, sample: int | None
) -> Report:
    facts = Facts(
        duplicates=tally.duplicates(),
        conflicts=tally.conflicts(),
        trained_before=tally.trained_before(context.trained),
        tokenised=context.template is not None,
        max_length=context.config.max_length,
        long_rows=context.config.intake.long_rows,
    )
    reasons = judge(tally, facts, context.config.intake)
    return _assemble(name, counts, tally, context, sample, reasons, facts)


def _assemble(
    name: str,
    counts: Counts,
    tally: Tally,
    context: Context,
    sample: int | None,
    reasons: list[Reason],
    facts: Facts | None = None,
) -> Report:
    tokenised, config = context.template is not None, context.config
    steps, padding = _predict(tally, config) if tokenised else (None, None)
    speed = context.tokens_per_s
    kept = tally.kept if tokenised else tally.rows - tally.invalid
    verdict, rejected = verdict_of(reasons), tally.rows - kept
    notes = [*counts.notes, *context.template_notes]
    if sample is not None:
        which = "rows at even distances" if counts.even else "first rows"
        notes.append(f"only {tally.rows} {which} were looked at; the counts are of these")
    return Report(
        file=name,
        bytes=counts.bytes,
        rows=tally.rows,
        kept_rows=kept,
        rejected_rows=rejected,
        blank_lines=counts.blank,
        documents=len(tally.lengths),
        tokens=tally.tokens if tokenised else None,
        supervised_tokens=tally.supervised if tokenised else None,
        lost_supervised_tokens=tally.whole_supervised - tally.supervised if tokenised else None,
        over_length_rows=tally.over_length if tokenised else None,
        lengths=_lengths(tally),
        padding_saved=padding,
        steps=None if steps is None else steps * config.epochs,
        seconds=tally.tokens * config.epochs / speed if tokenised and speed else None,
        peak_memory_bytes=_peak_memory(context),
        duplicate_rows=facts.duplicates if facts else 0,
        conflicting_prompts=facts.conflicts if facts else 0,
        trained_before_rows=facts.trained_before if facts else 0,
        validation_rows=tally.in_validation,
        injected_tokens=tally.injected,
        extra_keys=dict(counts.extra.first_line),
        notes=notes,
        problems=dict(tally.reasons.most_common(20)),
        rejects=tally.rejects[:REJECTS_SHOWN],
        samples=tally.samples,
        max_length=config.max_length,
        sampled=None if sample is None else tally.rows,
        verdict=verdict,
        summary=_summary(verdict, rejected, reasons),
        reasons=reasons,
    )


def _summary(verdict: str, rejected: int, reasons: list[Reason]) -> str:
    if verdict == "block":
        return next(reason.message for reason in reasons if reason.severity == "block")
    if rejected:
        return f"{verdict}, {rejected} {'reject' if rejected == 1 else 'rejects'}"
    warned = [reason.message for reason in reasons if reason.severity == "warn"]
    return f"warn, {warned[0]}" if warned else "ok"


def _lengths(tally: Tally) -> Lengths | None:
    if not tally.all_lengths:
        return None
    found = np.frombuffer(tally.all_lengths, dtype=np.int32)
    p50, p90, p95, p99 = np.percentile(found, (50, 90, 95, 99)).round().astype(int).tolist()
    return Lengths(p50, p90, p95, p99, int(found.max()))


def _predict(tally: Tally, config: Config) -> tuple[int, float]:
    """Optimizer steps of one epoch, and the share of padding that packing saves against batches
    of 19 rows each padded to its longest."""
    lengths = np.frombuffer(tally.lengths, dtype=np.int32)
    if not len(lengths):
        return 0, 0.0
    options = PlanOptions.from_config(config)
    if len(lengths) <= PLANNED_DOCUMENTS:
        steps = len(plan_epoch(lengths, np.arange(len(lengths)), "", 0, options))
    elif options.batch_size:
        steps = -(-len(lengths) // (options.batch_size * options.gradient_accumulation))
    else:
        steps = -(-int(lengths.sum()) // options.tokens_per_step)
    rows = 19
    whole = lengths[: len(lengths) // rows * rows].reshape(-1, rows)
    if not len(whole):
        return steps, 0.0
    padded = int(whole.max(axis=1).sum()) * rows
    return steps, round(1 - int(whole.sum()) / padded, 4)


def _peak_memory(context: Context) -> int | None:
    """An estimate, in bytes: parameters, moments and gradients (16 bytes each) and the activations
    of a micro-batch at about 40 kB a token. The trainer measures the real figure."""
    if context.parameters is None:
        return None
    tokens = context.config.micro_batch_tokens or context.config.pack_tokens
    return context.parameters * 16 + tokens * 40_000


if __name__ == "__main__":
    from trainer_tui.queue.report_command import main

    raise SystemExit(main())
