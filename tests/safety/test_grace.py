"""What is left of a dead daemon's trainer gets time as long as it writes, and not for ever."""

from __future__ import annotations

import os
import subprocess
import sys

from trainer_tui.safety import processes
from trainer_tui.safety.grace import CEILING_S, GRACE_S, MOVEMENT_BYTES, Grace


def over_at(bytes_at, waits_at=lambda second: False, seconds=2000) -> int | None:
    patience = Grace(0.0)
    for second in range(seconds):
        if patience.over(bytes_at(second), waits_at(second), float(second)):
            return second
    return None


def test_one_that_does_nothing_has_a_minute() -> None:
    assert over_at(lambda second: 7) == GRACE_S + 1


def test_bytes_that_move_prolong_it_until_a_minute_after_the_last() -> None:
    assert over_at(lambda second: min(second, 200) * MOVEMENT_BYTES) == 200 + GRACE_S + 1


def test_a_wait_for_the_disk_counts_as_movement() -> None:
    assert over_at(lambda second: 0, lambda second: second < 100) == 99 + GRACE_S + 1


def test_lines_of_a_log_are_no_movement_and_nothing_lasts_for_ever() -> None:
    assert over_at(lambda second: second * 100) == GRACE_S + 1
    assert over_at(lambda second: second * MOVEMENT_BYTES) == CEILING_S + 1


def test_the_kernel_counts_what_a_process_writes() -> None:
    program = "import os, sys; os.write(1, bytes(60_000)); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert len(child.stdout.read(60_000)) == 60_000
        process = processes.identify(child.pid)
        assert process is not None and processes.bytes_written(process) >= 60_000
    finally:
        child.communicate()
    assert processes.bytes_written(process) == 0
    ours = processes.identify(os.getpid())
    assert ours is not None and processes.bytes_written(ours) > 0
