"""How a step's packs are run: joined up to a token budget, split by documents when over it.

Execution, not plan: another budget gives the same update within rounding, so it may change at
any step (out of memory, another card). A document is never split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def split(
    packs: Sequence[Sequence[T]], budget_tokens: int, length_of: Callable[[T], int]
) -> Iterator[list[T]]:
    """Micro-batches of whole documents, in plan order, each within the budget.

    A single document longer than the budget runs alone.
    """
    batch: list[T] = []
    used = 0
    for unit in _units(packs, budget_tokens, length_of):
        size = sum(map(length_of, unit))
        if batch and used + size > budget_tokens:
            yield batch
            batch, used = [], 0
        batch = [*batch, *unit]
        used += size
    if batch:
        yield batch


def _units(
    packs: Sequence[Sequence[T]], budget_tokens: int, length_of: Callable[[T], int]
) -> Iterator[Sequence[T]]:
    for pack in packs:
        if sum(map(length_of, pack)) <= budget_tokens:
            yield pack
        else:
            yield from ([document] for document in pack)
