"""The newest ledger that this daemon saw committed, in `state/ledger.json`.

It tells files that were lost with a damaged checkpoint from those that a restore took out of the
model. Both are completed and not in the ledger in use. But a restore begins a lineage with a higher
number than any before it, while a trainer that passes damaged checkpoints over goes back on the
same lineage, or to a lower one. No clock is asked: it may have been wrong.

Invariant: it is written after a commit was seen and before the jobs of that commit leave
`processing/`, so no completed job is lost unnoticed. Without the note nothing is known, so nothing
counts as lost.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from trainer_tui.safety import durable, manifest, state_file
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import LedgerEntry, LedgerHead, Manifest
from trainer_tui.safety.state_file import Unusable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import trained

log = logging.getLogger("daemon")
NOTE = "ledger.json"


class Seen(msgspec.Struct, frozen=True):
    """What a committed checkpoint named."""

    lineage: int
    ledger: LedgerHead | None


def advance(workspace: Workspace, committed: Manifest) -> str:
    """Take note of a commit, unless it lacks something that was noted before.

    Returns:
        A sentence on a note that could not be used; empty as a rule.
    """
    (before, said), now = _read(workspace), Seen(committed.lineage, committed.ledger)
    if before is None or (now != before and _goes_on_from(workspace.ledger, before, now)):
        try:
            _write(workspace, now)
        except OSError as problem:
            # A full disk must not keep finished files in the queue; the next commit is noted.
            log.warning("%s could not be written: %s", NOTE, problem)
    return said


def lost(workspace: Workspace, in_use: Manifest) -> tuple[LedgerEntry, ...]:
    """What was committed and is not in the model that training goes on from, oldest first, without
    what a restore took out.

    Raises:
        Corrupt: a ledger segment is missing, unreadable (Unreadable) or damaged.
    """
    before, _ = _read(workspace)
    if before is None or in_use.lineage > before.lineage:
        return ()
    return trained.change(workspace.ledger, before.ledger, in_use.ledger).lost[::-1]


def settle(workspace: Workspace, in_use: Manifest) -> None:
    """What was lost is dealt with: from here on this ledger counts. Raises OSError."""
    now = Seen(in_use.lineage, in_use.ledger)
    if _read(workspace)[0] != now:
        _write(workspace, now)


def forget(workspace: Workspace) -> str:
    """Training begins with the base model: somebody took the checkpoints away. Returns as
    `advance`."""
    noted, said = _read(workspace)
    if noted is not None:
        durable.remove_file(workspace.state / NOTE)
    return said


def _goes_on_from(ledger: Path, before: Seen, now: Seen) -> bool:
    """A restore, or a ledger that lists everything the noted one lists."""
    if now.lineage != before.lineage or before.ledger is None:
        return now.lineage >= before.lineage
    head = now.ledger
    try:
        while head is not None and head.sequence > before.ledger.sequence:
            head = manifest.previous_head(manifest.read_segment(ledger, head))
    except Corrupt:
        return False  # not known; whoever needs this segment says what is wrong with it
    return head == before.ledger


def _read(workspace: Workspace) -> tuple[Seen | None, str]:
    """One that cannot be used is none, and set aside."""
    path = workspace.state / NOTE
    try:
        found = state_file.read(path, msgspec.json.Decoder(Seen).decode)
    except FileNotFoundError:
        return None, ""
    if isinstance(found, Unusable):
        text = f"{found.text}{state_file.set_aside(path)}; which ledger was the newest is not known"
        log.error("%s", text)
        return None, text
    return found, ""


def _write(workspace: Workspace, seen: Seen) -> None:
    durable.replace(workspace.state / NOTE, msgspec.json.encode(seen))
