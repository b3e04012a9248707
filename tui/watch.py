"""`trainer-tui watch --plain`: one line per change, for screen readers, logs and pipes.

Invariant: a line is written when something changed and never otherwise; no line is ever redrawn.
Limits: asks the daemon once a second, so changes that came and went within one are told by their
event alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from trainer_tui.safety.errors import NoDaemon
from trainer_tui.safety.text import printable
from trainer_tui.tui import figures

POLL_S = 1.0
PROGRESS_S = 30.0
HISTORY = 200


class Reader(Protocol):
    def get(self, path: str) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What has been told."""

    state: str = ""
    reason: str = ""
    event_id: int | None = None
    step: int | None = None
    progress_at_s: float = float("-inf")
    lost: bool = False


def run(client: Reader, rounds: int | None = None) -> int:
    """Tell changes until interrupted; 0. `rounds` bounds it, for tests."""
    seen = Seen()
    done = 0
    try:
        while rounds is None or done < rounds:
            seen = look(client, seen, time.monotonic(), lambda line: print(line, flush=True))
            done += 1
            if rounds is None or done < rounds:
                time.sleep(POLL_S)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return 0


def look(client: Reader, seen: Seen, now_s: float, tell: Callable[[str], None]) -> Seen:
    """Ask once, tell what is new, and return what has been told by now."""
    try:
        status = client.get("/v1/status")
        events = client.get(f"/v1/history?limit={HISTORY}").get("events") or []
    except NoDaemon as problem:
        if not seen.lost:
            tell(f"the daemon does not answer: {printable(problem.message)}")
        return Seen(seen.state, seen.reason, seen.event_id, seen.step, seen.progress_at_s, True)
    if seen.lost:
        tell("the daemon answers again")
    newest = max((event["id"] for event in events), default=seen.event_id)
    if seen.event_id is not None:
        for event in sorted(events, key=lambda item: item["id"]):
            if event["id"] > seen.event_id:
                tell(event_words(event, figures.date_of(status.get("now"))))
    training = status["training"]
    state, reason = training["state"], training.get("reason") or ""
    if (state, reason) != (seen.state, seen.reason):
        tell(f"training: {state}{': ' + printable(reason) if reason else ''}")
    step, progress_at_s = training.get("global_step"), seen.progress_at_s
    if step is not None and step != seen.step and now_s - progress_at_s >= PROGRESS_S:
        tell(progress_words(status))
        progress_at_s = now_s
    return Seen(state, reason, newest, step, progress_at_s, False)


def event_words(event: dict[str, Any], today: date | None) -> str:
    level = event.get("level") or "info"
    loud = "" if level == "info" else f"{level}: "
    return f"{figures.clock(event.get('at'), today)} {loud}{printable(event.get('text') or '')}"


def progress_words(status: dict[str, Any]) -> str:
    """One spoken line of how it goes."""
    training = status["training"]
    job = training.get("job")
    parts = [f"step {figures.count(training.get('global_step'))}"]
    if training.get("loss") is not None:
        parts.append(f"loss {figures.loss(training['loss'])}")
    if training.get("val_loss") is not None:
        parts.append(f"validation {figures.loss(training['val_loss'])}")
    if job:
        share = figures.percent(job.get("fraction"), 1.0)
        parts.append(f"{printable(job.get('name') or '')} {share}")
    parts.append(f"{status['queue']['waiting']} waiting")
    return ", ".join(parts)
