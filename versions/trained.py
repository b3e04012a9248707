"""Which files were trained between two points: a walk along the ledger's linked segments.

Two ledgers share everything up to the point where their lineages parted, so the walk ends there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import LedgerEntry, LedgerHead, LedgerSegment


def segments(ledger: Path, head: LedgerHead | None) -> Iterator[tuple[LedgerHead, LedgerSegment]]:
    """From the head back to the first, each checked. Raises Corrupt."""
    while head is not None:
        segment = manifest.read_segment(ledger, head)
        yield head, segment
        head = manifest.previous_head(segment)


def parted(
    ledger: Path, left: LedgerHead | None, right: LedgerHead | None
) -> tuple[list[LedgerEntry], list[LedgerEntry]]:
    """Entries only `left` lists and entries only `right` lists, each newest first.

    Raises:
        Corrupt: a segment on the way is missing or damaged.
    """
    only_left: list[LedgerEntry] = []
    only_right: list[LedgerEntry] = []
    while left != right:
        if right is None or (left is not None and left.sequence >= right.sequence):
            assert left is not None
            segment, left_next = _step(ledger, left)
            only_left += reversed(segment.entries)
            left = left_next
        else:
            segment, right_next = _step(ledger, right)
            only_right += reversed(segment.entries)
            right = right_next
    return only_left, only_right


@dataclass(frozen=True, slots=True)
class Change:
    """What going from one ledger to another means for the files, each newest first. `lost`: no
    longer learnt. `regained`: learnt again. A content that both ledgers list equally often is
    neither, whichever jobs brought it."""

    lost: tuple[LedgerEntry, ...] = ()
    regained: tuple[LedgerEntry, ...] = ()


def change(ledger: Path, before: LedgerHead | None, after: LedgerHead | None) -> Change:
    """Raises Corrupt: a segment on the way is missing or damaged."""
    only_before, only_after = parted(ledger, before, after)
    return Change(_beyond(only_before, only_after), _beyond(only_after, only_before))


def lost(
    ledger: Path, before: LedgerHead | None, after: LedgerHead | None
) -> tuple[tuple[LedgerEntry, ...], str]:
    """`Change.lost`, or why nobody can know it: the ledger is damaged."""
    try:
        return change(ledger, before, after).lost, ""
    except Corrupt as problem:
        return (), problem.message


def lost_too(
    ledger: Path, now: LedgerHead | None, then: LedgerHead | None, unsaved: Mapping[int, str]
) -> list[int]:
    """Of jobs that are trained and wait for their checkpoint ({id: hash of the content}), those
    that going back from `now` to `then` takes out of the model as well. None while the ledger is
    damaged."""
    try:
        only_now, only_then = parted(ledger, now, then)
    except Corrupt:
        return []
    listed = {entry.job_id for entry in only_now}
    regained = Counter(entry.file_sha256 for entry in _beyond(only_then, only_now))
    found = []
    for job_id, sha256 in unsaved.items():
        if job_id in listed:
            continue
        if regained[sha256]:
            regained[sha256] -= 1
        else:
            found.append(job_id)
    return found


def _beyond(entries: list[LedgerEntry], others: list[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """What `others` do not have as often; of one content the newest."""
    matched = Counter(entry.file_sha256 for entry in others)
    found = []
    for entry in reversed(entries):
        if matched[entry.file_sha256]:
            matched[entry.file_sha256] -= 1
        else:
            found.append(entry)
    return tuple(reversed(found))


def _step(ledger: Path, head: LedgerHead) -> tuple[LedgerSegment, LedgerHead | None]:
    segment = manifest.read_segment(ledger, head)
    return segment, manifest.previous_head(segment)


def since(
    ledger: Path, head: LedgerHead | None, older: LedgerHead | None, at_most: int
) -> tuple[list[LedgerEntry], bool]:
    """The newest `at_most` entries that came after `older`, newest first; True: there are more.

    Raises:
        Corrupt: a segment on the way is missing or damaged.
    """
    last = older.sequence if older else 0
    found: list[LedgerEntry] = []
    for place, segment in segments(ledger, head):
        if place.sequence <= last:
            break
        found += reversed(segment.entries)
        if len(found) > at_most:
            break
    return found[:at_most], len(found) > at_most
