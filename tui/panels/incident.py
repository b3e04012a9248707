"""An incident: what happened, what was done about it, and the evidence that was kept."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.ink import Line
from trainer_tui.tui.panels.facts import fact, wrapped

LAST_WORDS_LINES = 24


def incident_lines(found: Mapping[str, Any], folder: str, width: int) -> list[Line]:
    """Of an incident of `GET /v1/incidents`. `folder`: where all of them are kept."""
    name = printable(str(found.get("id", "")), 80)
    lines = [Line().add(" Incident ", "title").add(name, "dim")]
    lines += wrapped(str(found.get("text", "")), width, "bad")
    lines.append(fact("class", printable(str(found.get("class", "–")), 40)))
    lines.append(fact("when", figures.day(_text(found.get("at")))))
    lines += wrapped(f"done: {found.get('done', '–')}", width, "good")
    if found.get("suggestion"):
        lines += wrapped(f"→ {found['suggestion']}", width, "warn")
    if found.get("job") is not None:
        lines.append(fact("job", f"#{found['job']}"))
    if found.get("global_step") is not None:
        lines.append(fact("step", f"{figures.count(found['global_step'])}, {found.get('phase')}"))
    lines.append(fact("ended by", _ended(found.get("wait_status"))))
    if found.get("oom_kills"):
        lines.append(fact("OOM kills", str(found["oom_kills"]), "bad"))
    if found.get("disk_free_bytes") is not None:
        lines.append(fact("disk free", figures.size(found["disk_free_bytes"])))
    files = found.get("files")
    if isinstance(files, list) and files:
        lines += [Line(), Line().add(" Evidence", "title")]
        lines += wrapped(f"{folder}/{name}/", width, "", " ")
        lines += wrapped(", ".join(str(file) for file in files), width, "dim", "  ")
    words = str(found.get("last_words") or "").strip()
    if words:
        lines += [Line(), Line().add(" Its last words", "title")]
        for text in words.splitlines()[-LAST_WORDS_LINES:]:
            lines += wrapped(text, width, "dim")
    return lines


def _ended(wait_status: object) -> str:
    """`-9` as `signal SIGKILL`."""
    if not isinstance(wait_status, int):
        return figures.UNKNOWN
    if wait_status >= 0:
        return f"exit code {wait_status}"
    try:
        return f"signal {signal.Signals(-wait_status).name}"
    except ValueError:
        return f"signal {-wait_status}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
