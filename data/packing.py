"""The plan of a file: optimizer steps, each a list of packs, each a list of whole documents.

Invariant: the plan is a pure function of its arguments, on every machine and in every version of
the libraries below it (no library's random numbers: order comes from integer hashes computed
here). Every document stands in it exactly once; no pack holds more than its capacity.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer_tui.safety.config import Config

FORMAT = 1
Step = list[list[int]]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Sizes in tokens; `batch_size` in rows (0: `tokens_per_step` is the unit of a step).

    With `batch_size` a step holds `batch_size` x `gradient_accumulation` documents.
    """

    pack_tokens: int = 8192
    tokens_per_step: int = 32768
    batch_size: int = 0
    gradient_accumulation: int = 1
    seed: int = 17

    @classmethod
    def from_config(cls, config: Config) -> PlanOptions:
        return cls(
            pack_tokens=config.pack_tokens,
            tokens_per_step=config.tokens_per_step,
            batch_size=config.batch_size,
            gradient_accumulation=config.gradient_accumulation,
            seed=config.seed,
        )


def plan_epoch(
    lengths: NDArray[np.integer],
    documents: NDArray[np.integer],
    file_sha256: str,
    epoch: int,
    options: PlanOptions,
) -> list[Step]:
    """The optimizer steps of one epoch over one file.

    Args:
        lengths: tokens of every document of the file, [all documents].
        documents: indexes of the ones to train, each once.

    Raises:
        ValueError: a document is longer than `pack_tokens`.
    """
    documents = np.asarray(documents, dtype=np.int64)
    if not len(documents):
        return []
    sizes = np.asarray(lengths, dtype=np.int64)[documents]
    longest = int(sizes.max())
    if longest > options.pack_tokens:
        raise ValueError(f"a document of {longest} tokens is longer than {options.pack_tokens}")
    seed = _seed(file_sha256, epoch, options.seed)
    order = shuffled(len(documents), seed)
    named, sizes = documents[order], sizes[order]
    if options.batch_size:
        return _by_rows(named, sizes, options)
    capacity = min(options.pack_tokens, max(options.tokens_per_step, longest))
    packs = best_fit_decreasing(sizes, capacity)
    packs = [packs[at] for at in shuffled(len(packs), seed + 1).tolist()]
    per_step = max(1, options.tokens_per_step // capacity)
    steps = -(-len(packs) // per_step)
    names = named.tolist()
    cuts = [at * len(packs) // steps for at in range(steps + 1)]  # nearly equal steps
    return [
        [[names[at] for at in pack] for pack in packs[start:end]]
        for start, end in itertools.pairwise(cuts)
    ]


def _by_rows(documents: NDArray[Any], sizes: NDArray[Any], options: PlanOptions) -> list[Step]:
    rows = options.batch_size * options.gradient_accumulation
    steps = []
    for start in range(0, len(documents), rows):
        named = documents[start : start + rows].tolist()
        packs = best_fit_decreasing(sizes[start : start + rows], options.pack_tokens)
        steps.append([[named[at] for at in pack] for pack in packs])
    return steps


def best_fit_decreasing(sizes: NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Pack items into bins: longest first, each into the fullest bin that still has room.

    The bins are kept by free space, with one bit for each space that some bin has, so an item
    costs O(capacity / 64) machine words instead of a search (Johnson 1973, for the bound
    of 11/9 of the optimum).

    Returns:
        Positions in `sizes`, a list for each bin, in the order in which bins were opened.
    """
    order = np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable")
    ordered = np.asarray(sizes)[order].tolist()
    bins: list[list[int]] = []
    by_free: dict[int, list[int]] = {}
    occupied = 0  # bit f set: some bin has exactly f tokens free
    for position, size in zip(order.tolist(), ordered, strict=True):
        fitting = occupied >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            waiting = by_free[free]
            index = waiting.pop()
            if not waiting:
                occupied ^= 1 << free
        else:
            free, index = capacity, len(bins)
            bins.append([])
        bins[index].append(position)
        left = free - size
        if left:
            waiting = by_free.setdefault(left, [])
            if not waiting:
                occupied |= 1 << left
            waiting.append(index)
    return bins


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of `range(count)`: positions ordered by splitmix64(seed, position).

    splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        state = np.arange(1, count + 1, dtype=np.uint64) * golden + np.uint64(seed % (1 << 64))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.argsort(state, kind="stable").astype(np.int64)


def _seed(file_sha256: str, epoch: int, seed: int) -> int:
    text = f"{FORMAT}:{file_sha256}:{epoch}:{seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def plan_key(
    file_sha256: str,
    token_key: str,
    validation_set: str,
    excluded_rows: Sequence[int],
    options: PlanOptions,
) -> str:
    """32 hex digits over everything a plan is a function of (but the epoch, which a cursor
    names). Another key means that a cursor cannot be used."""
    parts = [FORMAT, file_sha256, token_key, validation_set, sorted(excluded_rows)]
    text = json.dumps([*parts, asdict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fill(plan: list[Step], lengths: NDArray[np.integer], capacity: int) -> float:
    """Share of the packs' capacity that holds tokens; 0 for an empty plan."""
    packs = [pack for step in plan for pack in step]
    tokens = sum(int(lengths[index]) for pack in packs for index in pack)
    return tokens / (len(packs) * capacity) if packs else 0.0
