"""Which jobs a committed checkpoint lists as completed. Read from disk, never from a message."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_tui.safety import checkpoints, manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import LedgerEntry, LedgerHead, Manifest
from trainer_tui.safety.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Committed:
    """The newest checkpoint whose manifest can be read, and what of `wanted` it lists."""

    folder: str
    manifest: Manifest
    completed: dict[int, LedgerEntry]


class Ledger:
    """Looks jobs up; `quick` looks only at what was committed since the last look.

    Not thread-safe: one thread asks at a time.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._seen: LedgerHead | None = None

    def look(self, wanted: set[int], *, quick: bool) -> Committed | None:
        """None when nothing was ever committed.

        Raises:
            Corrupt: a ledger segment is missing or damaged.
        """
        newest = newest_readable(self._workspace)
        if newest is None:
            return None
        folder, found = newest
        known = self._seen if quick else None
        completed = dict(self._search(found.ledger, known, wanted)) if wanted else {}
        self._seen = found.ledger
        return Committed(folder, found, completed)

    def _search(
        self, head: LedgerHead | None, known: LedgerHead | None, wanted: set[int]
    ) -> list[tuple[int, LedgerEntry]]:
        found: dict[int, LedgerEntry] = {}
        while head is not None and head != known and len(found) < len(wanted):
            segment = manifest.read_segment(self._workspace.ledger, head)
            for entry in reversed(segment.entries):
                if entry.job_id in wanted:
                    found.setdefault(entry.job_id, entry)
            head = LedgerHead(head.sequence - 1, segment.previous) if segment.previous else None
        return list(found.items())


def newest_readable(workspace: Workspace) -> tuple[str, Manifest] | None:
    """Newest checkpoint by global step whose manifest is whole; its weights are not hashed."""
    for folder in checkpoints.list_folders(workspace.current_model):
        try:
            return folder.name, manifest.read(folder)
        except Corrupt:
            continue  # the trainer says so when it passes this one over
    return None
