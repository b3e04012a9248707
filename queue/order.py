"""Order of waiting jobs: strict priority, first come first served inside, free moves in between.

Invariant: positions are unique within a priority. A move writes one position, so it is one rename.
A renumbering is a series of such moves that keeps the order at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

GAP = 1 << 20  # room for 20 halvings between two neighbours before a renumbering
ROOM = 1 << 10  # what a renumbering leaves between neighbours, at least
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


class Waiting(NamedTuple):
    """Sorts by position; a plain tuple, because a hundred thousand are compared often."""

    position: int
    job_id: int


class NoRoom(Exception):
    """Two neighbours have adjacent positions."""


def position_between(before: Waiting | None, after: Waiting | None) -> int:
    """Position that sorts after `before` and ahead of `after`; None stands for the open end.

    Raises:
        NoRoom: the two are adjacent; the caller renumbers the neighbourhood and asks again.
    """
    if after is None:
        wanted = before.position + GAP if before else 0
    elif before is None:
        wanted = after.position - GAP
    else:
        low, high = before.position, after.position
        if high - low < 2:
            raise NoRoom(before, after)
        wanted = (low + high) // 2
    if not LOWEST <= wanted <= HIGHEST:
        raise NoRoom(before, after)
    return wanted


def renumbering(order: Sequence[Waiting], at: int) -> list[Waiting]:
    """Moves that make room around index `at` of a priority's order, to be done one by one.

    Only as many neighbours move as it takes to leave `ROOM` between them. Those that move up go
    first, the last of them ahead; then those that move down, the first of them ahead: so no move
    overtakes a neighbour.

    Returns:
        Each job that moves with its new position.
    """
    reach = 8
    while True:
        start, end = max(0, at - reach), min(len(order), at + reach)
        low = order[start - 1].position if start else _open_below(order, end - start)
        high = order[end].position if end < len(order) else _open_above(order, end - start)
        step = (high - low) // (end - start + 1)
        if step > ROOM or (start == 0 and end == len(order)):
            break
        reach *= 2
    window = order[start:end]
    wanted = [low + step * (index + 1) for index in range(len(window))]
    pairs = list(zip(window, wanted, strict=True))
    up = [Waiting(new, old.job_id) for old, new in reversed(pairs) if new > old.position]
    down = [Waiting(new, old.job_id) for old, new in pairs if new < old.position]
    return up + down


def _open_below(order: Sequence[Waiting], count: int) -> int:
    return max(LOWEST, order[0].position - GAP * (count + 1)) if order else 0


def _open_above(order: Sequence[Waiting], count: int) -> int:
    return min(HIGHEST, order[-1].position + GAP * (count + 1)) if order else 0


def position_text(position: int) -> str:
    """20 digits that sort as the positions do."""
    return f"{position + (1 << 63):020d}"


def parse_position(text: str) -> int | None:
    """The inverse; None for anything else."""
    if len(text) != 20 or not text.isascii() or not text.isdigit():
        return None
    position = int(text) - (1 << 63)
    return position if LOWEST <= position <= HIGHEST else None
