"""When a version is made by itself: after a file, every so many steps, at a new best. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from trainer_tui.safety.config import Versioning
from trainer_tui.safety.manifest import Manifest
from trainer_tui.versions.records import Version
from trainer_tui.versions.retention import FIXED, best_versions

BETTER_BY = 0.005  # a new best counts when the fixed loss fell by half a percent of the old one


def due(sealed: Manifest, versions: Iterable[Version], policy: Versioning) -> str | None:
    """The description of the version to make of this checkpoint now, or None.

    Args:
        sealed: manifest of the newest checkpoint.
        versions: all there are.
    """
    known = [version for version in versions if version.record is not None]
    if any(v.global_step == sealed.global_step and v.lineage == sealed.lineage for v in known):
        return None
    line = [version for version in known if version.live]
    latest = max(line, key=lambda version: version.global_step, default=None)
    if policy.after_every_file:
        before = latest.record.ledger if latest and latest.record else None
        if sealed.ledger is not None and sealed.ledger != before:
            return f"after a file, at step {sealed.global_step}"
    if policy.every_steps:
        since = sealed.global_step - (latest.global_step if latest else 0)
        if since >= policy.every_steps:
            return f"every {policy.every_steps} steps: step {sealed.global_step}"
    if policy.on_new_best and _is_new_best(sealed, known):
        return f"best so far: {sealed.validation[FIXED]:.4f} at step {sealed.global_step}"
    return None


def _is_new_best(sealed: Manifest, versions: list[Version]) -> bool:
    loss = sealed.validation.get(FIXED, math.nan)
    if not math.isfinite(loss) or _of_the_untrained(sealed):
        return False
    best = best_versions(versions, 1)
    return not best or loss < best[0].validation[FIXED] * (1 - BETTER_BY)


def _of_the_untrained(sealed: Manifest) -> bool:
    """The loss was measured before the first step: it says nothing of what was learnt."""
    measured = sealed.extra.get("measured")
    return isinstance(measured, list) and measured[:1] == [0]
