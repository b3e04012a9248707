"""What follows from a trainer's end: a pure judgement over why it ended and what was before.

Invariant: restarts and retries are bounded. Only a new commit counts as progress; so many ends
without one set the file aside, or, with no file in hand, stop the restarting. Why it ended is
found by `safety.crash`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import Literal

from trainer_tui.safety.crash import Action, CrashClass, Finding

PARKED_IN_A_ROW = 2


@dataclass(frozen=True, slots=True)
class End:
    """`wait_status`: negative for a signal. `in_hand`: the job it was training, started
    `attempts` times without progress, this one counted. `killed`: a person had it killed."""

    wait_status: int
    asked_to_stop: bool
    said_stopping: bool
    ready: bool
    in_hand: int | None = None
    attempts: int = 0
    killed: bool = False

    @property
    def meant(self) -> bool:
        """It ended because it was asked to. One that was still loading may just be killed."""
        if self.killed:
            return True
        if self.asked_to_stop and not self.ready:
            return True
        if self.said_stopping and self.asked_to_stop and self.wait_status == -signal.SIGTERM:
            return True  # hurried by a second request when all was committed already
        return self.wait_status == 0 and (self.said_stopping or self.asked_to_stop)


@dataclass(frozen=True, slots=True)
class Record:
    """Since the last commit: `ends` in a row, and the classes of the files set aside in a row."""

    ends: int = 0
    parked: tuple[CrashClass, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`then`: restart after `wait_s`; or give up until a person looks. `park`: set the job in hand
    aside first."""

    finding: Finding
    wait_s: float
    park: bool
    then: Literal["restart", "degrade"]


def judge(
    end: End, finding: Finding, record: Record, limit: int, backoff_s: tuple[float, ...]
) -> tuple[Verdict, Record]:
    """What to do now, and what to remember. `limit`: attempts without progress."""
    spent = end.in_hand is not None and end.attempts >= limit
    park = end.in_hand is not None and (spent or finding.permanent)
    if park:
        same = not record.parked or record.parked[-1] == finding.crash_class
        parked = (*record.parked, finding.crash_class) if same else (finding.crash_class,)
        new = Record(0, parked)
    else:
        new = replace(record, ends=record.ends + 1)
    hopeless = end.in_hand is None and new.ends >= limit
    row = len(new.parked) >= PARKED_IN_A_ROW and not finding.permanent
    give_up = hopeless or row or _needs_a_person(finding)
    wait_s = backoff_s[min(new.ends, len(backoff_s)) - 1] if new.ends and backoff_s else 0.0
    if finding.action is Action.WAIT_FOR_MEMORY and backoff_s:
        wait_s = backoff_s[-1]
    return Verdict(finding, wait_s, park, "degrade" if give_up else "restart"), new


def _needs_a_person(finding: Finding) -> bool:
    """A full disk heals by itself (the disk's watch holds training back); the others do not."""
    if finding.crash_class is CrashClass.CHECKPOINT_CORRUPT:
        return True
    return finding.action is Action.PAUSE and finding.crash_class is not CrashClass.DISK_FULL
