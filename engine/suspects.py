"""A step failed: which of its rows are to blame, what is left of it, and telling people.

Invariant: whatever is tried here, the random numbers are afterwards where the boundary has them,
so a run that is killed and resumed comes to the same weights. An excluded row is in the cursor
of the next commit, in the ledger entry of its file, and in an incident.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from trainer_tui.engine import deaths, rng
from trainer_tui.engine.feed import Job
from trainer_tui.engine.poison import NotTheRows, find_guilty, too_many
from trainer_tui.engine.session import Boundary, Session

log = logging.getLogger("trainer.suspects")
REFERENCE_DOCUMENTS = 4


class Suspects:
    """Of one file in hand."""

    def __init__(self, session: Session, job: Job) -> None:
        self._session = session
        self._job = job

    def without_guilty(
        self, packs: Sequence[Sequence[int]], at: Boundary
    ) -> list[list[int]] | None:
        """What is left of a failed step: [] for nothing, all of it when it does not fail again.

        None: the rows are not to blame. The random state becomes that of `at`.
        """
        session, job = self._session, self._job
        documents = [index for pack in packs for index in pack]

        def fails(indexes: Sequence[int]) -> bool:
            return session.stepper.fails(job.documents(indexes))

        try:
            guilty = find_guilty(documents, fails, job.other_documents(REFERENCE_DOCUMENTS))
        except NotTheRows:
            return None
        except torch.OutOfMemoryError as problem:
            log.warning("no room to find out which rows fail: %s", problem)
            return None
        finally:
            rng.restore(at.rng, session.device.type, session.device)
            session.meter.interrupted()
        if not guilty:
            session.tell("warning", "incident", "a step failed once and not again", kind="step")
            return [list(pack) for pack in packs]
        rows = job.rows
        lines = job.exclude(guilty)
        if too_many(len(job.cursor.rows_excluded), rows):
            log.error("%d rows make steps fail: it is the file", len(job.cursor.rows_excluded))
            return None
        session.progress = session.progress.with_cursor(job.cursor)
        self._tell(lines)
        return [kept for pack in packs if (kept := [i for i in pack if i not in guilty])]

    def _tell(self, lines: list[int]) -> None:
        session, job = self._session, self._job
        named = ", ".join(map(str, lines))
        text = f"{job.train.name}: line {named} makes a step fail and is left out"
        session.tell(
            "error", "incident", text, kind="poison_rows", job=job.train.job_id, rows=lines
        )
        log.error("%s", text)
        step = session.progress.global_step
        deaths.keep_incident(
            session.workspace, text, job.train.job_id, lines, f"step-{step}", global_step=step
        )
