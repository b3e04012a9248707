"""When a version is made by itself: after a file, every so many steps, at a new best. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainer_tui.safety.config import Versioning
from trainer_tui.safety.manifest import Manifest
from trainer_tui.versions.best import figure_of
from trainer_tui.versions.line import Position, position_of, same_state, steps_trained
from trainer_tui.versions.records import Branch, Version

BETTER_BY = 0.005  # a new best counts when the fixed loss fell by half a percent of the old one


def due(
    sealed: Manifest,
    versions: Iterable[Version],
    policy: Versioning,
    branches: Mapping[int, Branch],
) -> str | None:
    """The description of the version to make of this checkpoint now, or None.

    Args:
        sealed: manifest of the newest checkpoint.
        versions: all there are.
        branches: by lineage. A restore moves the step on without training, so steps are counted
            along the line, and a state that was only restored is the version's own.
    """
    known = [version for version in versions if version.record is not None]
    here = Position(sealed.lineage, sealed.global_step)
    state = same_state(here, branches)
    if any(same_state(position_of(version), branches) == state for version in known):
        return None
    line = [version for version in known if version.live]
    latest = max(line, key=lambda version: version.global_step, default=None)
    if policy.after_every_file:
        before = latest.record.ledger if latest and latest.record else None
        if sealed.ledger is not None and sealed.ledger != before:
            return f"after a file, at step {sealed.global_step}"
    if policy.every_steps:
        before_that = steps_trained(position_of(latest), branches) if latest else 0
        since = steps_trained(here, branches) - before_that
        if since >= policy.every_steps:
            return f"every {policy.every_steps} steps: step {sealed.global_step}"
    return _new_best(sealed, known) if policy.on_new_best else None


def _new_best(sealed: Manifest, versions: list[Version]) -> str | None:
    """Against versions measured with the same set; the first of a set begins a new best."""
    found = figure_of(sealed)
    if found is None or found.step != sealed.global_step:  # it is the figure of another state
        return None
    rivals = [v.figure for v in versions if v.state == "ok" and v.figure is not None]
    same = [rival.loss for rival in rivals if rival.set_id == found.set_id]
    if same and found.loss >= min(same) * (1 - BETTER_BY):
        return None
    what = "best so far on a new validation set" if rivals and not same else "best so far"
    return f"{what}: {found.loss:.4f} at step {sealed.global_step}"
