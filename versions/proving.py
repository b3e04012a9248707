"""Proofs that somebody asked for: every file hashed, every tensor opened, the outcome noted.

What was hashed is remembered for a moment, so that verifying and then restoring reads it once.
Limit: what cannot be read now, or noted because the disk takes nothing, leaves no mark.
"""

from __future__ import annotations

import logging
from pathlib import Path

from trainer_tui.safety import clock
from trainer_tui.safety.errors import Corrupt, Unreadable
from trainer_tui.versions import check
from trainer_tui.versions.check import Proof, Verified
from trainer_tui.versions.layout import Layout, exclusive
from trainer_tui.versions.records import Version

log = logging.getLogger("versions")
RECENT_S = 120.0


class Prover:
    """Proves versions of one workspace and remembers the last proof for `RECENT_S`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._recent = Verified(None)
        self._recent_until_s = 0.0

    def recent(self) -> Verified | None:
        """Files hashed a moment ago; None when that is too long ago to be believed."""
        return self._recent if clock.monotonic_s() < self._recent_until_s else None

    def version(self, version: Version) -> Proof:
        """Hash all of it; what is found is its state from now on."""
        started_s = clock.monotonic_s()
        recent, problem = Verified(None), ""
        try:
            check.prove_version(version.folder, recent)
            self._remember(recent)
            self._note(version, "")
        except Unreadable as refusal:  # a look says so as long as it lasts
            problem = refusal.message
        except Corrupt as damage:
            problem = damage.message
            self._note(version, problem)
        seconds = clock.monotonic_s() - started_s
        sealed = check.look(version.folder).sealed
        count = len(sealed.files) if sealed else 0
        return Proof(
            version.number, version.name, not problem, problem, count, version.bytes, seconds
        )

    def folder(self, folder: Path) -> None:
        """Hash a folder by itself. Raises Corrupt."""
        recent = Verified(None)
        check.prove(folder, recent)
        self._remember(recent)

    def _remember(self, recent: Verified) -> None:
        self._recent, self._recent_until_s = recent, clock.monotonic_s() + RECENT_S

    def _note(self, version: Version, problem: str) -> None:
        try:
            with exclusive(self._layout):
                if problem and version.folder.exists():
                    check.mark_damaged(self._layout, version.name, problem)
                else:
                    check.unmark_damaged(self._layout, version.name)
        except OSError as failure:  # the proof is true all the same, and is what was asked for
            found = problem or f"{version.name} is intact"
            log.warning("%s; this could not be noted: %s", found, failure)
