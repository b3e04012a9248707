"""When and how the loop commits: by itself when due, at once when somebody waits.

Invariant: after a failed commit nothing is lost, for the state is still in memory: a full disk is
waited for, anything else is tried once more from the start (under a new staging name), then the
trainer ends with the reason. `Committed` is said only for what is renamed and durable.
"""

from __future__ import annotations

import errno
import logging

from trainer_tui.engine.checkpoint import CommitFailed, Done, NotFinite
from trainer_tui.engine.commit_policy import Reason, SavePolicy, Unsaved, due
from trainer_tui.engine.session import Boundary, Session
from trainer_tui.safety import clock
from trainer_tui.safety.heartbeat import Phase
from trainer_tui.safety.messages import Committed

log = logging.getLogger("trainer.saver")

SPACE_RETRY_S = 5.0
ATTEMPTS = 2
DAY_S = 86_400


class SaveFailed(Exception):
    """The state could not be committed; `error_class` as in crash classification."""

    def __init__(self, error_class: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message
        self.hint = hint


class Saver:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._next: Reason | None = None  # asked for while a commit was under way
        self._last_done_s = clock.monotonic_s()
        self._captured = session.progress  # what the last commit, done or under way, holds

    @property
    def busy(self) -> bool:
        return self._session.committer.busy

    @property
    def anything_unsaved(self) -> bool:
        session = self._session
        state = session.last_good.progress if session.last_good else session.progress
        return state.global_step > session.saved_step or bool(state.completed)

    @property
    def rate_changed(self) -> bool:
        """A person or the ladder multiplied the learning rate, and no checkpoint holds it."""
        return self._session.progress.lr_factor != self._captured.lr_factor

    def if_due(self, *, at_file_end: bool = False) -> None:
        """Begin a commit when the policy says so; never waits for the disk."""
        reason = self.due(at_file_end=at_file_end)
        if reason is not None:
            self.begin(reason)

    def due(self, *, at_file_end: bool = False) -> Reason | None:
        """Why a commit is due now; None when none is."""
        session, config = self._session, self._session.config
        listed = {entry.job_id for entry in self._captured.completed}
        unsaved = Unsaved(
            session.progress.global_step - self._captured.global_step,
            sum(entry.job_id not in listed for entry in session.progress.completed),
            clock.monotonic_s() - session.committer.last_commit_s,
        )
        policy = SavePolicy(config.save_steps, config.min_save_interval_s)
        if session.watch.nan_steps:
            return None
        return due(policy, unsaved, at_file_end=at_file_end)

    def begin(self, reason: Reason) -> None:
        """Begin a commit of whatever is unsaved, or remember to when one is under way."""
        if self.busy:
            self._next = reason
        else:
            self._session.read_late_figures()
            if self.anything_unsaved:
                self._begin(reason)

    def now(self, reason: Reason, *, again: bool = False) -> bool:
        """Commit everything, and come back when it is durable. `again`: even if all is saved.

        Returns:
            Whether a commit for this reason was made: else all was saved, or on its way.

        Raises:
            SaveFailed, NotFinite.
        """
        session = self._session
        session.read_late_figures()
        self._finish()
        if not self.anything_unsaved and not again:
            return False
        self._begin(reason)
        self._finish()
        return True

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take note of a commit that has come through. Raises SaveFailed, NotFinite."""
        answer = self._session.committer.poll(timeout_s)
        if self.busy or answer is not None:
            self._beat_commit()
        self._settle(answer)
        if self._next is not None and not self.busy:
            reason, self._next = self._next, None
            self.begin(reason)

    def _begin(self, reason: Reason) -> None:
        session, self._next = self._session, None
        session.read_late_figures()
        before = session.heart.phase
        session.heart.beat(Phase.STAGE)
        boundary = session.last_good or session.boundary()
        session.committer.begin(boundary.progress, session.state_of(boundary), reason)
        self._captured = boundary.progress
        session.heart.phase = before
        self._beat_commit()

    def _finish(self) -> None:
        session = self._session
        before = session.heart.phase
        if session.committer.busy:
            session.heart.beat(Phase.PERSIST)
            self._settle(session.committer.finish(self._beat_bytes))
            session.heart.phase = before
            self._beat_commit()

    def _beat_bytes(self, written: int) -> None:
        self._beat_commit()

    def _beat_commit(self) -> None:
        """Who writes, and how far it is: the daemon ends a writer in which nothing moves."""
        heart, committer = self._session.heart, self._session.committer
        heart.writer_pid = committer.writer_pid if committer.busy else 0
        heart.beat(bytes_written=committer.bytes_written)

    def _settle(self, answer: Done | CommitFailed | None) -> None:
        match answer:
            case None:
                return
            case Done():
                self._done(answer)
            case CommitFailed():
                self._again(answer)

    def _done(self, done: Done) -> None:
        session, written = self._session, done.written
        session.progress = session.progress.after_commit(
            done.progress, written.ledger, written.folder
        )
        if session.last_good is not None:
            good = session.last_good.progress.after_commit(
                done.progress, written.ledger, written.folder
            )
            session.last_good = Boundary(good, session.last_good.rng, session.last_good.watch)
        session.saved_step = done.progress.global_step
        session.control.say(
            Committed(
                done.progress.global_step,
                written.folder,
                written.bytes_written,
                written.seconds,
                done.reason,
            )
        )
        now_s = clock.monotonic_s()
        since_s, self._last_done_s = now_s - self._last_done_s, now_s
        log.info(
            "%s committed (%s): %.1f MB in %.2f s; at this rhythm %.1f GB a day",
            written.folder,
            done.reason,
            written.bytes_written / 1e6,
            written.seconds,
            written.bytes_written * DAY_S / max(since_s, 1e-3) / 1e9,
        )

    def _again(self, failed: CommitFailed) -> None:
        """Blocks: training must not run further ahead of the last commit than it has."""
        session = self._session
        session.tell("error", "checkpoint", f"the checkpoint was not written: {failed.text}")
        log.error("commit failed: %s", failed.text)
        answer: Done | CommitFailed | None = failed
        attempt = 1
        while isinstance(answer, CommitFailed):
            if answer.disk_full:
                if session.control.wait_out(SPACE_RETRY_S):
                    raise _give_up(answer)
            elif attempt >= ATTEMPTS:
                raise _give_up(answer)
            attempt += 1
            boundary = session.last_good or session.boundary()
            session.heart.beat(Phase.PERSIST)
            session.committer.begin(boundary.progress, session.state_of(boundary), answer.reason)
            self._captured = boundary.progress
            answer = session.committer.finish(self._beat_bytes)
        self._beat_commit()
        if answer is not None:
            self._done(answer)


def _give_up(failed: CommitFailed) -> SaveFailed:
    if failed.disk_full:
        return SaveFailed("disk_full", f"no room for the checkpoint: {failed.text}", "free space")
    error_class = "read_only" if failed.error_number == errno.EROFS else "io_error"
    return SaveFailed(
        error_class, f"the checkpoint could not be written: {failed.text}", "check the disk (dmesg)"
    )


__all__ = ["NotFinite", "SaveFailed", "Saver"]
