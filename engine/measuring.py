"""The workspace's fixed validation set as one trainer measures it, and what it says of it.

Invariant: `progress.validation["fixed"]` is always the loss of a whole set, and `measured` says of
which set and at which step; a slice is told to people and noted nowhere, for the next slice is of
other rows. A set that was never measured is measured whole at once: losses of two sets are not
compared with each other.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trainer_tui.engine import incidents
from trainer_tui.engine.evaluate import Evaluator, Result, Series
from trainer_tui.engine.incidents import Incident
from trainer_tui.engine.session import Session
from trainer_tui.safety.heartbeat import Phase
from trainer_tui.safety.messages import Evaluated


@dataclass(slots=True)
class Measuring:
    """`fixed`: None while there is no validation set. `job_id`: the file in hand, 0 for none."""

    session: Session
    evaluator: Evaluator
    fixed: Series | None
    job_id: int = 0

    @property
    def is_fresh(self) -> bool:
        """The whole set was measured at this very step."""
        here = (self.session.progress.global_step, self.fixed.set_id if self.fixed else "")
        return self.session.progress.measured == here

    def of_set(self, set_id: str) -> float | None:
        """The newest loss of the whole of this set; None when another was measured since."""
        progress = self.session.progress
        if progress.measured is None or progress.measured[1] != set_id:
            return None
        return progress.validation.get("fixed")

    def whole(self, *, wanted: bool = False) -> Incident | None:
        """Measure the whole set unless that was done at this step; when time allows or `wanted`.

        Cut short when somebody waits, unless `wanted`.
        """
        session, fixed = self.session, self.fixed
        if fixed is None or self.is_fresh:
            return None
        first = session.watch.fixed_set != fixed.set_id
        if first:
            told = "losses before are of another set" if session.watch.fixed_set else "now in use"
            session.tell(
                "info",
                "validation",
                f"validation set {fixed.set_id} of {fixed.count} documents: {told}",
                set_id=fixed.set_id,
            )
        before = session.heart.phase
        session.heart.beat(Phase.EVAL)
        evaluator = self.evaluator
        if wanted:
            evaluator = dataclasses.replace(evaluator, urgent=lambda: session.control.wants_out)
        result = evaluator.whole(fixed, wanted=wanted or first)
        session.meter.interrupted()
        session.heart.beat(before)
        return self.publish(result)

    def publish(self, result: Result | None) -> Incident | None:
        """Tell it, note it, and find what it means."""
        if result is None:
            return None
        session = self.session
        step = session.progress.global_step
        session.control.say(
            Evaluated(
                step,
                result.series,
                result.set_id,
                result.loss,
                result.rows,
                result.supervised_tokens,
                result.seconds,
                result.whole,
                self.job_id,
            )
        )
        progress = session.progress
        if result.series != "fixed" or result.whole:
            noted = {**progress.validation, result.series: result.loss}
            progress = dataclasses.replace(progress, validation=noted)
        if result.series == "fixed" and result.whole:
            progress = dataclasses.replace(progress, measured=(step, result.set_id))
        session.progress = progress
        session.watch, incident = incidents.after_evaluation(session.watch, result)
        return incident
