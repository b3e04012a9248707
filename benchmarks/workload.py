"""The rows every contender trains on: chat-like lengths, seeded, the same for all.

Lengths are lognormal (log-mean 6.0, log-sigma 0.7, clipped to 32..4096: about 510 tokens), the
first 40 % of each row is unsupervised, as a prompt would be. Token ids come from a skewed
distribution, so that there is something to learn and loss curves can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Document = tuple[np.ndarray, np.ndarray]  # ids int64 [length], mask bool [length]
PROMPT_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Workload:
    """What to train on, small enough to be written on a command line."""

    vocabulary: int = 151_936
    tokens_per_step: int = 32_768  # a step is filled with whole rows up to this
    rows_per_step: int = 0  # or by this many rows, where it is not 0
    steps: int = 29
    log_mean: float = 6.0
    log_sigma: float = 0.7
    shortest: int = 32
    longest: int = 4096
    seed: int = 20261124


def rows(workload: Workload, generator: np.random.Generator, count: int) -> list[Document]:
    """`count` rows with ids and masks."""
    drawn = np.exp(generator.normal(workload.log_mean, workload.log_sigma, count))
    lengths = np.clip(drawn, workload.shortest, workload.longest).astype(int)
    made = []
    for length in lengths:
        ids = (workload.vocabulary * generator.random(length) ** 3).astype(np.int64)
        mask = np.arange(length) >= int(PROMPT_SHARE * length)
        made.append((ids, mask))
    return made


def steps(workload: Workload) -> list[list[Document]]:
    """Optimizer steps, each a list of whole rows of at most `tokens_per_step` tokens together."""
    generator = np.random.default_rng(workload.seed)
    made: list[list[Document]] = []
    current: list[Document] = []
    filled = 0
    while len(made) < workload.steps:
        for row in rows(workload, generator, 256):
            too_long = filled + len(row[0]) > workload.tokens_per_step
            full = len(current) == workload.rows_per_step if workload.rows_per_step else too_long
            if full and current:
                made.append(current)
                current, filled = [], 0
            current.append(row)
            filled += len(row[0])
    return made[: workload.steps]


def tokens_in(step: list[Document]) -> int:
    return sum(len(ids) for ids, _ in step)


def supervised_in(step: list[Document]) -> int:
    """Targets: supervised tokens but for a row's first, which nothing predicts."""
    return sum(int(mask[1:].sum()) for _, mask in step)
