"""The waiting jobs of one priority in training order, and the work that stands ahead of each.

Invariant: sorted, no block is empty, every block knows its tokens. Looking up, adding, removing
and the sum ahead of a place touch one block and the list of blocks, so a hundred thousand jobs
cost what a thousand do. Not thread-safe: the store's lock is around it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

from trainer_tui.queue.order import Waiting

BLOCK = 1024  # entries; a fuller block is halved


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of some jobs for one epoch; `unknown`: how many of the jobs were not counted."""

    tokens: int = 0
    unknown: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.unknown + other.unknown)


class _Block:
    __slots__ = ("entries", "tokens", "total", "unknown")

    def __init__(self, entries: list[Waiting], tokens: list[int]) -> None:
        self.entries, self.tokens = entries, tokens
        self.total, self.unknown = sum(tokens), tokens.count(0)


def _first(block: _Block) -> Waiting:
    return block.entries[0]


class Line(Sequence[Waiting]):
    """`tokens` of a job: 0 when they were not counted."""

    def __init__(self, jobs: Iterable[tuple[Waiting, int]] = ()) -> None:
        """`jobs`: in any order, each with its tokens."""
        ordered = sorted(jobs)
        self._blocks = [
            _Block([one for one, _ in part], [tokens for _, tokens in part])
            for start in range(0, len(ordered), BLOCK // 2)
            if (part := ordered[start : start + BLOCK // 2])
        ]
        self._length = len(ordered)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiting]:
        return chain.from_iterable([*block.entries] for block in self._blocks)

    @overload
    def __getitem__(self, index: int) -> Waiting: ...
    @overload
    def __getitem__(self, index: slice) -> list[Waiting]: ...
    def __getitem__(self, index: int | slice) -> Waiting | list[Waiting]:
        if isinstance(index, slice):
            return list(self)[index]
        left = index + self._length if index < 0 else index
        if left >= 0:
            for block in self._blocks:
                if left < len(block.entries):
                    return block.entries[left]
                left -= len(block.entries)
        raise IndexError(index)

    def _block_of(self, one: Waiting) -> int:
        return max(0, bisect.bisect_right(self._blocks, one, key=_first) - 1)

    def place_of(self, one: Waiting) -> int:
        """How many stand before where `one` stands or would stand."""
        if not self._blocks:
            return 0
        at = self._block_of(one)
        before = sum(len(block.entries) for block in self._blocks[:at])
        return before + bisect.bisect_left(self._blocks[at].entries, one)

    def add(self, one: Waiting, tokens: int) -> None:
        self._length += 1
        if not self._blocks:
            self._blocks.append(_Block([one], [tokens]))
            return
        number = self._block_of(one)
        block = self._blocks[number]
        at = bisect.bisect_left(block.entries, one)
        block.entries.insert(at, one)
        block.tokens.insert(at, tokens)
        block.total += tokens
        block.unknown += not tokens
        if len(block.entries) > BLOCK:
            half = BLOCK // 2
            self._blocks[number : number + 1] = [
                _Block(block.entries[:half], block.tokens[:half]),
                _Block(block.entries[half:], block.tokens[half:]),
            ]

    def remove(self, one: Waiting) -> None:
        """One that is not there is no error."""
        if not self._blocks:
            return
        number = self._block_of(one)
        block = self._blocks[number]
        at = bisect.bisect_left(block.entries, one)
        if at == len(block.entries) or block.entries[at] != one:
            return
        self._length -= 1
        del block.entries[at]
        tokens = block.tokens.pop(at)
        block.total -= tokens
        block.unknown -= not tokens
        if not block.entries:
            del self._blocks[number]

    def work(self) -> Work:
        """Of all."""
        blocks = self._blocks
        return Work(sum(block.total for block in blocks), sum(block.unknown for block in blocks))

    def work_before(self, one: Waiting) -> Work:
        """Of those that stand before `one`."""
        if not self._blocks:
            return Work()
        number = self._block_of(one)
        block = self._blocks[number]
        part = block.tokens[: bisect.bisect_left(block.entries, one)]
        ahead = self._blocks[:number]
        tokens = sum(found.total for found in ahead) + sum(part)
        return Work(tokens, sum(found.unknown for found in ahead) + part.count(0))
