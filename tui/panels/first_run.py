"""A first visit: what this machine has, and what to do next, each with the key that does it.

Pure: a view in, rows out. Shown in place of the empty chart and the empty queue.
"""

from __future__ import annotations

from trainer_tui.safety.text import printable
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.panels.facts import wrapped
from trainer_tui.tui.view import View

# What a key mends, by the finding's subject.
NO_MODEL = "base_model"  # the daemon's reason names the setting
FIXES = {"model": ("b", "choose the model")}


def nothing_trained(view: View, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """In place of the chart."""
    reason = view.training.reason or ""
    lines = [Line().add("  No step has been trained yet.", "strong")]
    lines += wrapped(reason, width - 2, "warn", "  ") if reason else []
    if NO_MODEL in reason:
        lines.append(Line().add("  b", "key").add(" choose the model", "dim"))
    if view.is_new:
        lines += _findings(view, height - len(lines), glyphs)
    elif not reason:
        lines.append(Line().add("  The curve begins with the first step.", "dim"))
    if height > len(lines) + 1:
        lines.insert(0, Line())
    return [line.row(width) for line in lines]


def _findings(view: View, room: int, glyphs: Glyphs) -> list[Line]:
    if view.findings is None:
        return [Line().add(f"  {glyphs.ellipsis} looking at this machine", "dim")]
    told = {"model"} if NO_MODEL in (view.training.reason or "") else set()
    bad = [item for item in view.findings if item.level != "ok" and item.subject not in told]
    good = [finding for finding in view.findings if finding.level == "ok"]
    lines: list[Line] = []
    for finding in bad:
        lines += _finding(finding, glyphs)
    if len(lines) + len(good) > room and good:  # the good ones in one line
        words = ", ".join(finding.subject for finding in good)
        return [*lines[: room - 1], Line().add(f"  {glyphs.check} ", "good").add(words, "dim")]
    for finding in good:
        lines += _finding(finding, glyphs)
    return lines


def _finding(finding: Finding, glyphs: Glyphs) -> list[Line]:
    mark, role = {
        "fail": (glyphs.cross, "bad"),
        "ok": (glyphs.check, "good"),
    }.get(finding.level, (glyphs.note, "warn"))
    line = Line().add(f"  {mark} ", role).cell(finding.subject, 10, "dim")
    line.add(printable(finding.text, 200), "bad" if finding.level == "fail" else "")
    if finding.level == "ok":
        return [line]
    key, words = FIXES.get(finding.subject, ("", ""))
    if key:
        return [line, Line().add(" " * 14).add(key, "key").add(f" {words}", "dim")]
    if finding.hint:
        return [line, Line().add(" " * 14).add(printable(finding.hint, 200), "dim")]
    return [line]


def nothing_queued(view: View, width: int) -> list[Row]:
    """In place of the queue's rows."""
    folder = view.status.daemon.workspace if view.status else ""
    where = f"{printable(folder)}/inbox" if folder else "inbox/"
    drop = Line().add("  Drop a .jsonl file of chats into ", "dim").add(where)
    if not view.is_new:
        lines = [
            Line(),
            Line().add("  Nothing waits.", "strong"),
            drop,
            Line().add("  or add one by its path: ", "dim").add("A", "key"),
            Line().add("  inbox/high/ and inbox/low/ set its priority.", "dim"),
        ]
        return [line.row(width) for line in lines]
    roomy = width >= drop.width + 11
    lines = [
        Line().add("  What to do next", "strong"),
        *_halted(view),
        drop.add("  ").add("A", "key").add(" by path", "dim") if roomy else drop,
        _model(view),
        Line().add("  See it all at once: ", "dim").add("trainer-tui demo").add(
            " in another terminal" if width >= 60 else "", "dim"
        ),
        Line().add("  ").add("d", "key").add(" doctor   ", "dim").add(":", "key").add(
            " everything else", "dim"
        ),
    ]  # fmt: skip
    return [line.row(width) for line in lines]


def _halted(view: View) -> list[Line]:
    if view.training.intent.training not in ("pause", "stopped", "degraded"):
        return []
    words = f"  Training is {view.training.state}: "
    return [Line().add(words, "warn").add("p", "key").add(" lets it go on", "dim")]


def _model(view: View) -> Line:
    name = view.status.model.name if view.status and view.status.model else None
    line = Line().add("  It trains ", "dim").add(printable(name or "no model yet", 40))
    return line.add("  ").add("b", "key").add(" another model", "dim")
