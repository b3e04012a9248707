"""All about the selection: a job with its report, a version's card, an event's evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.glyphs import Glyphs, bar
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.facts import NAME_CELLS, fact, fact_wrapped, wrapped
from trainer_tui.tui.panels.incident import incident_lines
from trainer_tui.tui.view import Job, Panel, Said, Version


def job_lines(job: Job, report: Mapping[str, Any] | None, width: int, glyphs: Glyphs) -> list[Line]:
    lines = [Line().add(f" #{job.id} ", "dim").add(printable(job.name, width - 8), "strong")]
    place = f", place {job.place}" if job.place else ""
    lines.append(fact("state", f"{job.state}{place}, {job.priority}{', held' if job.held else ''}"))
    if job.state == "processing":
        filled, rest = bar(job.fraction, max(6, min(30, width - 22)), glyphs)
        share = figures.percent(job.fraction, 1.0)
        lines.append(fact("progress", filled, "bar").add(rest, "off").add(f" {share}"))
    if job.why_waiting and job.state == "waiting":
        lines += wrapped(f"waits: {job.why_waiting}", width, "warn" if job.held else "")
    elif job.why_waiting:
        lines += wrapped(job.why_waiting, width, "good")
    if job.error:
        lines += wrapped(job.error.message or "failed", width, "bad")
        if job.error.hint:
            lines += wrapped(f"{job.error.hint}", width, "dim")
        lines.append(Line().add(" r ", "key").add("retries it", "dim"))
    role = {"ok": "good", "warn": "warn", "block": "bad"}.get(job.verdict, "")
    lines += fact_wrapped("verdict", job.summary or job.verdict, width, role)
    rejects = f", {job.rejected_rows} rejected" if job.rejected_rows else ""
    lines.append(fact("rows", f"{figures.count(job.rows)}{rejects}"))
    lines.append(fact("tokens", _tokens(job)))
    if job.trained_rows:
        tokens = figures.short_count(job.trained_tokens)
        lines.append(fact("trained", f"{figures.count(job.trained_rows)} rows, {tokens} tokens"))
    lines.append(fact("size", f"{figures.size(job.bytes)}, {figures.count(job.steps)} steps"))
    if job.eta_s and len(job.eta_s) > 1 and job.state in ("processing", "waiting"):
        start = "now" if not job.eta_s[0] else f"in {figures.duration(job.eta_s[0])}"
        lines.append(fact("plan", f"starts {start}, done in {figures.duration(job.eta_s[1])}"))
        if job.eta_p90_s and len(job.eta_p90_s) > 1:
            late = figures.duration(job.eta_p90_s[1])
            lines.append(fact("", f"9 of 10 times within {late}", "dim"))
    if job.attempts:
        lines.append(fact("attempts", str(job.attempts), "warn" if job.attempts > 1 else ""))
    if job.val_before is not None or job.val_after is not None:
        lines.append(
            fact("val", f"{figures.loss(job.val_before)} → {figures.loss(job.val_after)}", "val")
        )
    lines.append(fact("added", figures.day(job.added_at)))
    if job.finished_at:
        lines.append(
            fact("finished", f"{figures.day(job.finished_at)}, {figures.duration(job.seconds)}")
        )
    return lines + report_lines(report, width, glyphs)


def _tokens(job: Job) -> str:
    if not job.tokens:
        return "not counted: no model when it came" if job.verdict == "unchecked" else "none"
    supervised = figures.short_count(job.supervised_tokens)
    return f"{figures.short_count(job.tokens)}, {supervised} supervised"


def report_lines(report: Mapping[str, Any] | None, width: int, glyphs: Glyphs) -> list[Line]:
    """The data report: findings, lengths, and rows with the tokens that are trained lit."""
    if not report:
        return []
    lines = [Line(), Line().add(" Data report", "title")]
    for reason in _dicts(report.get("reasons")):
        role = {"block": "bad", "warn": "warn"}.get(str(reason.get("severity")), "")
        lines += wrapped(f"{glyphs.note} {reason.get('message', '')}", width, role)
        if reason.get("hint"):
            lines += wrapped(str(reason["hint"]), width, "dim", "   ")
    lines += _lengths(report, width, glyphs)
    told = {reason.get("code") for reason in _dicts(report.get("reasons"))}
    for name, code, words in (
        ("duplicate_rows", "duplicates", "rows twice"),
        ("trained_before_rows", "trained_before", "rows trained before"),
        ("validation_rows", "in_validation", "rows of the validation set"),
        ("conflicting_prompts", "conflicts", "prompts with different answers"),
    ):
        if report.get(name) and code not in told:
            lines.append(Line().add(f" {figures.count(report[name])} {words}", "warn"))
    for sample in _dicts(report.get("samples"))[:5]:
        lines += [Line(), Line().add(f" row {sample.get('line')}", "dim")]
        lines += _example(sample, width)
    return lines


def _lengths(report: Mapping[str, Any], width: int, glyphs: Glyphs) -> list[Line]:
    """Tokens of a row at four quantiles, against the longest; red above `max_length`."""
    lengths = report.get("lengths")
    if not isinstance(lengths, Mapping):
        return []
    longest = float(lengths.get("longest") or 1)
    cells = max(4, min(24, width - NAME_CELLS - 14))
    lines = []
    for name in ("p50", "p90", "p99", "longest"):
        value = float(lengths.get(name) or 0)
        filled, rest = bar(value / longest, cells, glyphs)
        over = value > float(report.get("max_length") or math.inf)
        line = fact(name, filled, "bad" if over else "train").add(rest, "off")
        lines.append(line.add(f" {figures.count(value)}"))
    return lines


def _dicts(found: object) -> list[Mapping[str, Any]]:
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _example(sample: Mapping[str, Any], width: int) -> list[Line]:
    """A row as it is trained, in at most six lines."""
    line, lines = Line().add(" "), []
    for run in _dicts(sample.get("runs"))[:60]:
        role = "good" if run.get("supervised") else "dim"
        for word in str(run.get("text", "")).split():
            word = printable(word, width - 2)
            if line.width + len(word) + 1 >= width and line.width > 1:
                lines.append(line)
                line = Line().add(" ")
            line.add(word + " ", role)
    return [*lines, line][:6]


def version_lines(version: Version, width: int) -> list[Line]:
    lines = [Line().add(f" v{version.number:03d} ", "strong").add(printable(version.name), "dim")]
    lines += wrapped(version.description or "no description", width)
    lines.append(fact("state", version.state, "good" if version.state == "ok" else "bad"))
    marks = [name for name, on in (("live", version.live), ("pinned", version.pinned),
                                   ("weights only", version.weights_only)) if on]  # fmt: skip
    if marks:
        lines.append(fact("", ", ".join(marks)))
    lines.append(
        fact(
            "made", f"{figures.day(version.created_at)}{' by itself' if version.automatic else ''}"
        )
    )
    lines.append(fact("step", f"{figures.count(version.global_step)}, lineage {version.lineage}"))
    lines.append(fact("tokens", figures.short_count(version.tokens)))
    for name, value in (version.validation or {}).items():
        lines.append(fact(f"val {name}"[:10], figures.loss(value), "val"))
    lines.append(fact("size", figures.size(version.bytes)))
    if version.files:
        lines += [Line(), Line().add(f" Trained files ({len(version.files)})", "title")]
        for item in version.files[:40]:
            rows = figures.short_count(item.get("rows"))
            lines.append(
                Line()
                .cell(f"  {printable(str(item.get('name')))}", width - 12)
                .add(f"{rows:>8} rows"[:11], "dim")
            )
    return lines


def event_lines(event: Said, width: int) -> list[Line]:
    role = {"error": "bad", "warning": "warn"}.get(event.level, "")
    lines = [fact("when", f"{figures.day(event.at)[:6]} {figures.clock(event.at, None)}")]
    lines += [fact("level", event.level, role), fact("topic", printable(event.topic or "–"))]
    lines += [Line(), *wrapped(event.text, width, role)]
    if isinstance(event.data, Mapping) and event.data:
        lines.append(Line())
        for name, value in event.data.items():
            lines += wrapped(f"{name}: {value}", width, "dim")
    return lines


class InspectorPanel(FramedPanel):
    number = 6
    title_text = "Inspector"

    def __init__(self) -> None:
        super().__init__(id=Panel.INSPECTOR.value)
        self._top = 0
        self._of: object = None

    def lines(self, width: int) -> list[Line]:
        subject = self.screen_app.subject()
        key = (type(subject), getattr(subject, "id", getattr(subject, "number", None)))
        if key != self._of:
            self._of, self._top = key, 0
        match subject:
            case Job():
                return job_lines(subject, self.screen_app.report_of(subject.id), width, self.glyphs)
            case Version():
                return version_lines(subject, width)
            case Said():
                app = self.screen_app
                lines = event_lines(subject, width)
                found = app.incident_of(subject)
                if found is not None:
                    lines += [Line(), *incident_lines(found, app.incidents_folder, width)]
                return lines
            case _:
                return [Line().add(" Nothing is selected.", "dim")]

    def inner(self, width: int, height: int) -> list[Row]:
        lines = self.lines(width)
        self._top = max(0, min(self._top, len(lines) - height))
        return [line.row(width) for line in lines[self._top : self._top + height]]

    def step(self, rows: int) -> None:
        self._top = max(0, self._top + rows)
        self.repaint()

    def ends(self, last: bool) -> None:
        self._top = 10_000 if last else 0
        self.repaint()

    def copy_text(self) -> str:
        lines = self.lines(200)
        return "\n".join("".join(text for text, _ in line.spans).strip() for line in lines)
