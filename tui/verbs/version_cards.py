"""Versions as lines for people: a row, a card, what lies between two. Pure functions of documents.

Everything that came from outside goes through `printable`; a figure that is not known is a dash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainer_tui.safety.text import printable
from trainer_tui.tui import columns

LABEL = 15
UNKNOWN = "which files were trained since, and would be undone, is not known"
NAMES = 20  # files named in a card; the rest is counted


def name_of(number: int) -> str:
    return f"v{number:03d}"


def marks(version: dict[str, Any], latest: int | None = None, best: int | None = None) -> str:
    found = (
        ("best", version["number"] == best),
        ("latest", version["number"] == latest),
        ("current", version.get("current")),
        ("left branch", version.get("live") is False and version.get("state") == "ok"),
        ("pinned", version.get("pinned")),
        ("weights only", version.get("weights_only")),
        (str(version.get("state")), version.get("state") not in (None, "ok")),
    )
    return ", ".join(mark for mark, there in found if there)


def row(version: dict[str, Any], latest: int | None, best: int | None = None) -> list[str]:
    """number, step, validation loss, made, size, description, marks"""
    return [
        name_of(version["number"]),
        plain(version.get("global_step")),
        columns.figure((version.get("validation") or {}).get("fixed")),
        minute(version.get("created_at")),
        columns.size(version.get("bytes")),
        printable(version.get("description") or "", 50),
        marks(version, latest, best),
    ]


def minute(stamp: str | None) -> str:
    return (stamp or "–")[:16].replace("T", " ")


def signed(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:+.{digits}f}"


def _line(label: str, value: str) -> str:
    return f"{label:<{LABEL}}{value}"


def card(version: dict[str, Any]) -> list[str]:
    """One version: where it stands, what its files did, what came since."""
    lines = [f"{printable(version['name'])}  {printable(version.get('description') or '', 200)}"]
    if version.get("problem"):
        lines.append(_line("problem", printable(version["problem"])))
    facts = [
        ("made", f"{minute(version.get('created_at'))}{_by(version)}"),
        ("step", f"{plain(version.get('global_step'))}, lineage {plain(version.get('lineage'))}"),
        ("grew from", printable(version.get("parent") or "the base model")),
        ("tokens", f"{columns.count(version.get('tokens'))} seen"),
        ("size", _size(version)),
        ("state", marks(version) or "ok"),
    ]
    lines += [_line(label, value) for label, value in facts]
    for name, loss in sorted((version.get("validation") or {}).items()):
        text = f"{columns.figure(loss)}{_of_which(version) if name == 'fixed' else ''}"
        lines.append(_line(f"val {printable(name, 10)}", text))
    if version.get("change_since_parent") is not None:
        lines.append(
            _line("val change", f"{signed(version['change_since_parent'])} since its parent")
        )
    lines += _taught("learnt since its parent", version.get("files") or [], version.get("impact"))
    since = version.get("files_since") or []
    lines += _taught("learnt after it, undone by a restore", since, None)
    if version.get("files_since_problem"):
        lines += ["", f"{UNKNOWN}: {printable(version['files_since_problem'])}"]
    return lines


def _of_which(version: dict[str, Any]) -> str:
    """Figures of two sets do not compare, and one can be older than the version."""
    of_set = version.get("validation_set")
    text = f"  set {printable(of_set, 20)}" if of_set else ""
    at = version.get("measured_at")
    return text if at in (None, version.get("global_step")) else f"{text}, measured at step {at}"


def _by(version: dict[str, Any]) -> str:
    return ", by itself" if version.get("automatic") else ", by a person"


def plain(value: Any) -> str:
    return "–" if value is None else str(value)


def _size(version: dict[str, Any]) -> str:
    text = columns.size(version.get("bytes"))
    own = version.get("exclusive_bytes")
    if own is None:
        return text
    if own >= (version.get("bytes") or 0):
        return f"{text}, shared with nothing else"
    return f"{text}, {columns.size(own)} of it shared with nothing else"


def _taught(title: str, files: list[dict[str, Any]], impact: dict[str, Any] | None) -> list[str]:
    """A table of files with what each took and did."""
    if not files:
        return []
    total = ""
    if impact:
        total = f", {columns.count(impact.get('tokens'))} tokens, {impact.get('minutes', 0):g} min"
        if impact.get("val_change") is not None:
            total += f", val {signed(impact['val_change'])}"
    rows = [
        [
            f"  #{file.get('job_id')}",
            printable(str(file.get("name")), 40),
            columns.count(file.get("rows")),
            columns.count(file.get("tokens")),
            f"{file.get('minutes') or 0:g}",
            signed(file.get("val_change")),
        ]
        for file in files[:NAMES]
    ]
    lines = ["", f"{title}: {len(files)} file{'s' * (len(files) != 1)}{total}"]
    lines += columns.table(rows, ["", "file", "rows", "tokens", "min", "val"]).splitlines()
    if len(files) > NAMES:
        lines.append(f"  and {len(files) - NAMES} more: --json")
    return lines


def difference(found: dict[str, Any]) -> list[str]:
    """What lies between two versions, as `GET /v1/versions/diff/{a}/{b}` says."""
    steps, tokens = found.get("steps") or 0, found.get("tokens") or 0
    lines = [
        f"{printable(found['first'])} -> {printable(found['second'])}",
        _line("steps", f"{steps:+d}"),
        _line("tokens", f"{'-' if tokens < 0 else '+'}{columns.count(abs(tokens))}"),
    ]
    for name, change in sorted((found.get("validation") or {}).items()):
        a, b = change.get("first"), change.get("second")
        text = f"{columns.figure(a)} -> {columns.figure(b)}  {_by_how_much(change)}"
        lines.append(_line(f"val {printable(name, 10)}", text))
    lines += _taught("learnt in between", found.get("only_second") or [], _impact(found, "second"))
    first = found.get("only_first") or []
    lines += _taught(f"only in {printable(found['first'])}", first, _impact(found, "first"))
    if settings := found.get("settings"):
        lines += ["", "settings:", *_changes(settings)]
    return lines


def _impact(found: dict[str, Any], which: str) -> dict[str, Any] | None:
    impact = found.get(f"impact_{which}")
    return impact if isinstance(impact, dict) else None


def _by_how_much(change: dict[str, Any]) -> str:
    by = change.get("by")
    if change.get("comparable") is False:
        return "of other rows: not compared"
    if by is None or by == 0:
        return signed(by)
    return f"{signed(by)}  {'better' if by < 0 else 'worse'}"


def _changes(settings: dict[str, Any]) -> Iterable[str]:
    for key, change in settings.items():
        a, b = (_short(key, change.get(side)) for side in ("first", "second"))
        yield f"  {printable(key)}: {a} -> {b}"


def _short(key: str, value: Any) -> str:
    """Hashes by their beginning, the rest whole."""
    text = printable(str(value), 60)
    return text[:12] if key.endswith("_hash") else text
