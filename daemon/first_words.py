"""What was wrong with the files that a daemon began with, told once it can be heard."""

from __future__ import annotations

from collections.abc import Iterable

from trainer_tui.daemon.intent import Intent
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.queue.scan import Finding


def tell(
    teller: Teller,
    settings: Settings,
    intent: Intent,
    findings: Iterable[Finding],
    undo_problem: str,
    history_problems: Iterable[str],
) -> None:
    """One event for each."""
    for text in history_problems:
        teller.say("error", "history", text)
    for problem in (settings.problem, settings.found_at_start):
        if problem:
            teller.say("error", "config", problem)
    if intent.is_unknown:
        teller.say("error", "training", f"training stays stopped: {intent.why}")
    if undo_problem:
        teller.say("warning", "undo", undo_problem)
    for finding in findings:
        teller.say("warning", "queue", finding.text)
