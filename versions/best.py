"""Which is the best on the fixed validation set: like compared with like. Pure.

Losses of two sets do not compare, and the set of a workspace can change while it lives. A figure
says of which set it is, so only those of one set are ever compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trainer_tui.safety.manifest import Manifest

FIXED = "fixed"  # the validation series that says which one is best
SETS = 2  # the set in use, and the one before: going back shows an old set for a while
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """Loss over the whole fixed set `set_id` (empty: not known), measured at `step`, which is not
    later than the step it is kept with. Step 0: of a model that had learnt nothing yet."""

    loss: float
    set_id: str
    step: int


def figure_of(sealed: Manifest) -> Figure | None:
    """What a manifest says of the fixed set; None when nothing was measured."""
    loss = sealed.validation.get(FIXED, math.nan)
    if not math.isfinite(loss):
        return None
    match sealed.extra.get("measured"):
        case [int(step), str(set_id)]:
            return Figure(loss, set_id, step)
    return Figure(loss, "", sealed.global_step)


def leaders(
    newest_first: Sequence[T],
    figure: Callable[[T], Figure | None],
    step: Callable[[T], int],
    count: int,
) -> list[T]:
    """The `count` best on the set of the newest measured one, best first; then those of the set
    that the second newest carries, when it is another.

    Of equal figures the one nearest to where it was measured counts, then the newer one.

    Args:
        step: the global step of one.
    """
    measured = [(found, item) for item in newest_first if (found := figure(item)) is not None]
    leading: list[T] = []
    for set_id in dict.fromkeys(found.set_id for found, _ in measured[:SETS]):
        of_set = [
            (found.loss, step(item) - found.step, place, item)
            for place, (found, item) in enumerate(measured)
            if found.set_id == set_id
        ]
        leading += [item for *_, item in sorted(of_set, key=lambda entry: entry[:3])[:count]]
    return leading
