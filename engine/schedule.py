"""The learning rate as a pure function of where training stands.

`lr = base * factor * warm-up * shape * cool-down`. The origins are global steps kept in the
manifest, so the position survives any number of files and resumes: the warm-up happens once per
model life (and once after a weights-only restore), and a halving is exact because the factor is
stored, not re-derived.

Limits: `cosine` and `linear` fall to zero over one file; `constant` never falls by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

Shape = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True, slots=True)
class CoolDown:
    """A linear fall to zero over `steps`, asked for at global step `origin`."""

    origin: int
    steps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """`factor` multiplies everything; the ladder and people change it, the manifest keeps it."""

    base: float
    shape: Shape
    warmup_steps: int
    warmup_origin: int
    factor: float = 1.0
    cool_down: CoolDown | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """`global_step`: steps done before this one. `file_step` of `file_steps`, over all epochs."""

    global_step: int
    file_step: int
    file_steps: int


def learning_rate(schedule: Schedule, position: Position) -> float:
    """Rate of the step that takes the model from `global_step` to `global_step + 1`."""
    return (
        schedule.base
        * schedule.factor
        * _warm_up(schedule, position)
        * _shape(schedule.shape, position)
        * _cool_down(schedule.cool_down, position)
    )


def _warm_up(schedule: Schedule, position: Position) -> float:
    done = position.global_step - schedule.warmup_origin
    if schedule.warmup_steps <= 0 or done >= schedule.warmup_steps:
        return 1.0
    return (max(done, 0) + 1) / schedule.warmup_steps  # never 0: the first step already moves


def _shape(shape: Shape, position: Position) -> float:
    through = position.file_step / max(position.file_steps, 1)
    match shape:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * through))
        case "linear":
            return 1.0 - through
        case _:
            assert_never(shape)


def _cool_down(cool_down: CoolDown | None, position: Position) -> float:
    if cool_down is None:
        return 1.0
    done = position.global_step - cool_down.origin
    return min(1.0, max(0.0, 1.0 - done / max(cool_down.steps, 1)))
