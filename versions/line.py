"""Where a model stands in its history: positions, the line that leads to it, and the way back.

A position is (lineage, global step). A restore commits an old state under a new step and a new
lineage, so two positions can hold the same weights; `same_state` finds the first of them.
Invariant: along a line the global step only grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer_tui.versions.records import Branch, Version


@dataclass(frozen=True, slots=True)
class Position:
    lineage: int
    global_step: int


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line: this lineage, up to and including this step."""

    lineage: int
    last_step: int


def same_state(position: Position, branches: Mapping[int, Branch]) -> Position:
    """Where this state was first reached: a restore that was not trained on since is undone."""
    seen: set[int] = set()
    while True:
        branch = branches.get(position.lineage)
        if branch is None or branch.global_step != position.global_step or branch.lineage in seen:
            return position
        seen.add(branch.lineage)
        position = Position(branch.from_lineage, branch.from_step)


def line_of(position: Position, branches: Mapping[int, Branch]) -> tuple[Span, ...]:
    """The spans that lead to a position, newest first, back to the base model."""
    spans = [Span(position.lineage, position.global_step)]
    while (branch := branches.get(spans[-1].lineage)) is not None:
        if any(span.lineage == branch.from_lineage for span in spans):
            break  # records that contradict each other must not hang anybody
        spans.append(Span(branch.from_lineage, branch.from_step))
    return tuple(spans)


def steps_trained(position: Position, branches: Mapping[int, Branch]) -> int:
    """Steps that lead from the base model to a position; a restore's own step trains nothing."""
    trained = 0
    for span in line_of(position, branches):
        branch = branches.get(span.lineage)
        trained += max(0, span.last_step - (branch.global_step if branch else 0))
    return trained


def is_on(line: Iterable[Span], position: Position) -> bool:
    return any(
        span.lineage == position.lineage and position.global_step <= span.last_step for span in line
    )


def nearest(versions: Iterable[Version], line: Iterable[Span]) -> Version | None:
    """The youngest sound version on a line."""
    spans = tuple(line)
    on_line = [v for v in versions if v.state == "ok" and is_on(spans, position_of(v))]
    return max(on_line, key=lambda v: (v.global_step, v.number), default=None)


def position_of(version: Version) -> Position:
    return Position(version.lineage, version.global_step)


def previous(
    versions: Iterable[Version], here: Position | None, branches: Mapping[int, Branch]
) -> Version | None:
    """Where a rollback leads: the youngest sound version whose state is before this one's.

    Steps since the last version: that version. None since: the one before. Asked twice in a row,
    it goes back twice. With nothing to stand on (no checkpoint), the youngest sound version.
    """
    sound = [version for version in versions if version.state == "ok"]
    if here is None:
        return max(sound, key=lambda v: v.number, default=None)
    line = line_of(here, branches)
    now = same_state(here, branches)
    before = [
        version
        for version in sound
        if is_on(line, position_of(version))
        and same_state(position_of(version), branches).global_step < now.global_step
    ]
    return max(
        before,
        key=lambda v: (same_state(position_of(v), branches).global_step, v.number),
        default=None,
    )
