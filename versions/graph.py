"""The history of the model as a graph, and as text for a terminal.

Newest on top, one column per lineage that is alive at that height; a restore is where a column
begins, and it joins the column of the version it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer_tui.safety.text import printable
from trainer_tui.versions.emergency import Standing
from trainer_tui.versions.records import Branch, Version

Kind = Literal["current", "version", "restore"]
_SIGNS: Mapping[Kind, str] = {"current": "◆", "version": "●", "restore": "○"}
DAMAGED = "✗"


@dataclass(frozen=True, slots=True)
class Node:
    """One point of the history. `live`: on the line of the current model."""

    kind: Kind
    name: str
    lineage: int
    global_step: int
    text: str
    live: bool
    sound: bool

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Graph:
    """`nodes`, the highest step first; `branches` by lineage (lineage 0 has none)."""

    nodes: tuple[Node, ...]
    branches: Mapping[int, Branch]

    def as_dict(self) -> dict[str, Any]:
        return {
            "nodes": [node.as_dict() for node in self.nodes],
            "branches": [
                {
                    "lineage": branch.lineage,
                    "from_lineage": branch.from_lineage,
                    "from_step": branch.from_step,
                    "global_step": branch.global_step,
                    "source": branch.source,
                    "left": branch.left or None,
                    "at": branch.at,
                }
                for branch in self.branches.values()
            ],
            "drawing": self.draw(),
        }

    def draw(self) -> list[str]:
        """Lines of text, e.g. `│ ● v003_20261124  step 300  second file`."""
        return _Drawing(self).lines()


def build(
    versions: Iterable[Version],
    branches: Mapping[int, Branch],
    here: Standing | None,
    kept: Iterable[int] = (),
) -> Graph:
    """Versions, the restores that were committed, and the current checkpoint.

    `kept`: lineages that an emergency backup stands on, so their restores were committed too.
    """
    nodes = [_version_node(version) for version in versions if version.record is not None]
    lineages = {node.lineage for node in nodes} | ({here.sealed.lineage} if here else set())
    lineages |= set(kept)
    happened = _happened(branches, lineages)
    for branch in happened.values():
        live = here is not None and branch.lineage in _ancestors(here.sealed.lineage, branches)
        text = f"{branch.reason} of {branch.source}"
        place = (branch.checkpoint, branch.lineage, branch.global_step)
        nodes.append(Node("restore", *place, text, live, True))
    if here is not None:
        sealed = here.sealed
        place = (here.folder.name, sealed.lineage, sealed.global_step)
        nodes = [n for n in nodes if n.kind != "restore" or n.name != here.folder.name] + [
            Node("current", *place, _current_text(sealed.reason, sealed.parent), True, True)
        ]
    order = {"current": 2, "version": 1, "restore": 0}
    nodes.sort(key=lambda node: (node.global_step, order[node.kind], node.name), reverse=True)
    return Graph(tuple(nodes), happened)


def _current_text(reason: str, parent: str) -> str:
    return f"now, {reason} of {parent}" if reason in ("restore", "rollback") else "now"


def _version_node(version: Version) -> Node:
    text = version.record.description if version.record else ""
    if version.pinned:
        text = f"[pinned] {text}"
    if version.state != "ok":
        text = f"[{version.state}] {text}"
    place = (version.name, version.lineage, version.global_step)
    return Node("version", *place, text.strip(), version.live, version.state == "ok")


def _happened(branches: Mapping[int, Branch], lineages: set[int]) -> dict[int, Branch]:
    """Branches that something stands on; one written just before a crash carries nothing."""
    reached: set[int] = set()
    for lineage in lineages:
        reached |= _ancestors(lineage, branches)
    return {number: branch for number, branch in branches.items() if number in reached}


def _ancestors(lineage: int, branches: Mapping[int, Branch]) -> set[int]:
    found = {lineage}
    while (branch := branches.get(lineage)) is not None and branch.from_lineage not in found:
        lineage = branch.from_lineage
        found.add(lineage)
    return found


class _Drawing:
    """Columns of lineages, walked from the top down."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._columns: list[int | None] = []
        self._waiting = dict(graph.branches)  # branches that have not joined their parent yet

    def lines(self) -> list[str]:
        drawn: list[str] = []
        for node in self._graph.nodes:
            drawn += self._joins(node.lineage, node.global_step)
            column = self._column(node.lineage)
            sign = _SIGNS[node.kind] if node.sound else DAMAGED
            where = f"{node.name}  step {node.global_step}"
            text = printable(node.text, 60)
            rails = self._rails(column, sign)
            drawn.append(f"{rails}  {where}{'  ' + text if text else ''}")
        return drawn

    def _column(self, lineage: int) -> int:
        if lineage not in self._columns:
            free = self._columns.index(None) if None in self._columns else len(self._columns)
            self._columns[free : free + 1] = [lineage]
        return self._columns.index(lineage)

    def _rails(self, column: int, sign: str) -> str:
        rails = ["│" if lineage is not None else " " for lineage in self._columns]
        rails[column] = sign
        return " ".join(rails).rstrip()

    def _joins(self, lineage: int, step: int) -> list[str]:
        """Before a point is drawn: the lineages that began at or above it join its column."""
        lines = []
        for branch in sorted(self._waiting.values(), key=lambda found: -found.lineage):
            begun = branch.lineage in self._columns
            if not begun or branch.from_lineage != lineage or branch.from_step < step:
                continue
            del self._waiting[branch.lineage]
            child = self._columns.index(branch.lineage)
            if lineage not in self._columns:
                self._columns[child] = lineage  # nothing above it: one straight line
                continue
            parent = self._columns.index(lineage)
            left, right = sorted((child, parent))
            lines.append(self._join(left, right))
            self._columns[left], self._columns[right] = lineage, None
            while self._columns and self._columns[-1] is None:
                self._columns.pop()
        return lines

    def _join(self, left: int, right: int) -> str:
        """`├─╯`: what came down on the right goes on on the left, crossing those between."""
        cells = ["│" if lineage is not None else " " for lineage in self._columns]
        for column in range(left + 1, right):
            cells[column] = "┼" if cells[column] == "│" else "─"
        cells[left], cells[right] = "├", "╯"
        gaps = ["─" if left <= column < right else " " for column in range(len(cells))]
        return "".join(cell + gap for cell, gap in zip(cells, gaps, strict=True)).rstrip()
