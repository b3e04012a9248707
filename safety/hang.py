"""Telling a hung trainer from a slow one: a judge over heartbeats, pure but for its memory.

Progress is a changed beat, nothing else: a thread that ticks proves no progress, so nothing in
the trainer beats by a timer. Each phase has its own patience, max(floor, 12 x p99 of the silences
seen in it), 15 minutes at most. The judge's own gaps (a suspended machine, a starved daemon) are
not held against the trainer: only time in which both were watched counts. All times are
monotonic, so a clock jump means nothing here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from trainer_tui.safety.heartbeat import Beat, Phase

LOOK_INTERVAL_S = 1.0
WRITER_LIMIT_S = 300.0  # without a byte written; one fsync of a large file moves none
OWN_GAP_S = 5.0  # between two looks: then we were the ones who slept
STOPPED_LIMIT_S = 5.0  # in state T before SIGCONT is sent
P99_FACTOR = 12.0
CEILING_S = 900.0
REMEMBERED = 512  # silences per phase

# Seconds; the configured floor (hang_floor_s) applies where it is larger.
FLOOR_S: dict[Phase, float] = {
    Phase.START: 60.0,
    Phase.IMPORT: 180.0,
    Phase.LOAD: 300.0,
    Phase.COMPILE: 900.0,
    Phase.DATA: 300.0,
    Phase.MICRO_STEP: 60.0,
    Phase.OPTIMIZER: 60.0,
    Phase.EVAL: 60.0,
    Phase.STAGE: 120.0,
    Phase.PERSIST: 600.0,  # twice what its writer gets: that one goes first
    Phase.SHUTDOWN: 120.0,
}
PATIENT_FOR_EVER = frozenset({Phase.IDLE, Phase.PAUSED})


@dataclass(frozen=True, slots=True)
class Moving:
    """Nothing to do. `silent_s`: since the last sign of progress."""

    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody sent SIGSTOP: continue it first; killed only when that does not help twice."""

    continued: int


@dataclass(frozen=True, slots=True)
class Hung:
    """Dump stacks twice, 5 s apart, then end it; the job's attempt counts."""

    phase: Phase
    silent_s: float
    limit_s: float


Verdict = Moving | Stopped | Hung
MAX_CONTINUES = 2


class Judge:
    """Feed it a beat and the process state about every second."""

    def __init__(self, floor_s: float = 60.0) -> None:
        self._floor_s = floor_s
        self._last: Beat | None = None
        self._looked_s: float | None = None
        self._silent_s = 0.0
        self._stopped_s = 0.0
        self._continued = 0
        self._silences: dict[Phase, deque[float]] = {}

    def limit_s(self, phase: Phase) -> float:
        """How long this phase may be silent now."""
        floor = max(self._floor_s, FLOOR_S.get(phase, 0.0))
        return min(CEILING_S, max(floor, P99_FACTOR * self._p99(phase)))

    def look(self, beat: Beat | None, state: str | None, now_s: float) -> Verdict:
        """Judge.

        Args:
            beat: the last one read; None before the first.
            state: the process's one-letter state from /proc; None when it is gone.
            now_s: monotonic.
        """
        watched_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if watched_s > OWN_GAP_S:
            watched_s = 0.0  # we slept, and so perhaps did the trainer
        if state in ("T", "t"):
            return self._judge_stopped(watched_s)
        self._stopped_s = 0.0
        if beat != self._last:
            self._note(beat)
            return Moving()
        self._silent_s += watched_s
        phase = beat.phase if beat else Phase.START
        if phase in PATIENT_FOR_EVER:
            return Moving(self._silent_s)
        limit = self.limit_s(phase)
        if self._silent_s > limit:
            return Hung(phase, self._silent_s, limit)
        return Moving(self._silent_s)

    def _judge_stopped(self, watched_s: float) -> Verdict:
        """Time spent stopped does not count as silence; it has its own, shorter patience."""
        self._stopped_s += watched_s
        if self._stopped_s < STOPPED_LIMIT_S:
            return Moving(self._silent_s)
        if self._continued >= MAX_CONTINUES:
            phase = self._last.phase if self._last else Phase.START
            return Hung(phase, self._stopped_s, STOPPED_LIMIT_S)
        self._stopped_s = 0.0
        self._continued += 1
        return Stopped(self._continued)

    def _note(self, beat: Beat | None) -> None:
        if self._last is not None:
            kept = self._silences.setdefault(self._last.phase, deque(maxlen=REMEMBERED))
            kept.append(self._silent_s)
        self._last = beat
        self._silent_s = 0.0
        self._continued = 0

    def _p99(self, phase: Phase) -> float:
        kept = self._silences.get(phase)
        if not kept:
            return 0.0
        ordered = sorted(kept)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


@dataclass(frozen=True, slots=True)
class WriterHung:
    """End the writer: the trainer makes the request again with a new one."""

    pid: int
    silent_s: float


class WriterJudge:
    """Whether a commit under way still moves. Training goes on beside it, so the trainer's own
    progress says nothing about it."""

    def __init__(self) -> None:
        self._last: tuple[int, int, int] | None = None
        self._step = 0  # of the trainer, when something moved last
        self._looked_s: float | None = None
        self._silent_s = 0.0

    def look(
        self, writer_pid: int, bytes_seen: tuple[int, int], waits_since: int | None, now_s: float
    ) -> WriterHung | None:
        """Judge, about every second.

        Args:
            writer_pid: 0: no commit is under way.
            bytes_seen: what the trainer says is written, and what the kernel counted.
            waits_since: the trainer's global step; it asks the writer once a step, so that in the
                middle of a long one it does not know yet that the writer is through. None: it
                does nothing but wait for the writer.
            now_s: monotonic.
        """
        watched_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        now = (writer_pid, *bytes_seen)
        if not writer_pid or now != self._last:
            self._last, self._silent_s, self._step = now, 0.0, waits_since or 0
            return None
        if watched_s <= OWN_GAP_S:
            self._silent_s += watched_s
        asked = waits_since is None or waits_since > self._step + 1
        if self._silent_s <= WRITER_LIMIT_S or not asked:
            return None
        return WriterHung(writer_pid, self._silent_s)
