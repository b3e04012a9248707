"""The data report for people: plain lines, with colour only where a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_tui.queue.report import Report
from trainer_tui.queue.tally import Sample
from trainer_tui.safety.text import printable

_COLOURS = {"block": "31", "warn": "33", "note": "36", "ok": "32"}
SAMPLE_CHARACTERS = 600


def lines(report: Report, *, colour: bool) -> Iterator[str]:
    """The whole report, line by line, no newlines inside."""
    yield f"{_paint(report.verdict.upper(), report.verdict, colour)}  {report.file}"
    yield ""
    yield from _counts(report)
    if report.reasons:
        yield ""
        for reason in report.reasons:
            yield f"{_paint(reason.severity, reason.severity, colour)}: {reason.message}"
            if reason.hint:
                yield f"    {reason.hint}"
    for note in report.notes:
        yield f"note: {note}"
    if report.extra_keys:
        keys = ", ".join(printable(key, 40) for key in list(report.extra_keys)[:8])
        yield f"note: other keys are ignored: {keys}"
    if report.rejects:
        yield ""
        yield "rejected:"
        for reject in report.rejects:
            yield f"  line {reject.line}: {printable(reject.reason)}"
        if report.rejected_rows > len(report.rejects):
            yield f"  and {report.rejected_rows - len(report.rejects)} more"
    if report.samples:
        yield ""
        yield "samples (what is trained is " + ("green):" if colour else "in ⟦brackets⟧):")
        for sample in report.samples:
            yield f"  line {sample.line}, {sample.supervised} of {sample.tokens} tokens trained"
            yield f"    {_sample(sample, colour)}"


def _counts(report: Report) -> Iterator[str]:
    yield f"rows         {report.rows:,} read, {report.kept_rows:,} to train"
    if report.tokens is not None and report.supervised_tokens is not None:
        share = report.supervised_tokens / max(report.tokens, 1)
        trained = f"{report.supervised_tokens:,} ({share:.0%}) train"
        yield f"tokens       {report.tokens:,}, of which {trained}"
    if report.lengths is not None:
        found = report.lengths
        yield (
            f"row length   half below {found.p50}, 90 % below {found.p90}, 95 % below {found.p95}, "
            f"99 % below {found.p99}, longest {found.longest} (max_length {report.max_length})"
        )
    if report.steps is not None:
        yield f"training     {report.steps:,} steps, {_time(report.seconds)}"
    if report.padding_saved:
        yield f"packing      saves {report.padding_saved:.0%} of padded batches"
    if report.peak_memory_bytes is not None:
        size = report.peak_memory_bytes / 1e9
        yield f"memory       about {size:.1f} GB, estimated from the model's size"
    elif report.steps is not None:
        yield "memory       unknown: the model's weights are not there"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown: nothing was trained here lately"
    if seconds < 60:
        return "less than a minute at the speed of late"
    return f"about {seconds / 60:,.0f} minutes at the speed of late"


def _sample(sample: Sample, colour: bool) -> str:
    parts, room = [], SAMPLE_CHARACTERS
    for run in sample.runs:
        text = printable(run.text.replace("\n", "⏎"), room)
        room -= len(text)
        if run.supervised:
            text = f"\x1b[32m{text}\x1b[0m" if colour else f"⟦{text}⟧"
        parts.append(text)
        if room <= 0:
            break
    return "".join(parts)


def _paint(text: str, kind: str, colour: bool) -> str:
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if colour else text
