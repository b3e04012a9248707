"""Time for what is left of a dead daemon's trainer to finish its commit: as long as bytes move.

Pure. A large model on a slow disk takes minutes to save; a process that hangs takes for ever. So
the patience runs from the last movement, and ends for good at a ceiling.
"""

from __future__ import annotations

GRACE_S = 60.0
CEILING_S = 900.0
MOVEMENT_BYTES = 4096  # between two looks: lines of a log are no commit


class Grace:
    """Begin one when the process is found; `over` is asked about every second."""

    def __init__(self, now_s: float, grace_s: float = GRACE_S) -> None:
        self._grace_s, self._began_s, self._moved_s = grace_s, now_s, now_s
        self._bytes: int | None = None

    def over(self, bytes_written: int, waits_for_disk: bool, now_s: float) -> bool:
        """Whether it has had its time.

        Args:
            bytes_written: so far, by all that is left.
            waits_for_disk: one of them is in an uninterruptible wait (fsync moves no bytes).
            now_s: monotonic.
        """
        before, self._bytes = self._bytes, bytes_written
        if waits_for_disk or (before is not None and bytes_written - before >= MOVEMENT_BYTES):
            self._moved_s = now_s
        return now_s - self._moved_s > self._grace_s or now_s - self._began_s > CEILING_S
