"""The table of `docs/reliability.md`: scenario, runs, survived, lost, recovery p50 and p95.

Kept between the markers of that page, one row a scenario; a run replaces the rows it ran.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RAW = ROOT / "build" / "reliability.jsonl"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
HEAD = (
    "| scenario | runs | survived | lost | recovery p50 | p95 | command | date |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


@dataclass
class Row:
    """`seconds`: how long each recovery took. `lost`: runs in which an invariant broke."""

    runs: int = 0
    survived: int = 0
    seconds: list[float] = field(default_factory=list)
    command: str = ""

    def cells(self, scenario: str) -> str:
        p50, p95 = _quantile(self.seconds, 0.5), _quantile(self.seconds, 0.95)
        date = time.strftime("%Y-%m-%d")
        lost = self.runs - self.survived
        return (
            f"| {scenario} | {self.runs} | {self.survived} | {lost} | {p50} | {p95} |"
            f" `{self.command}` | {date} |"
        )


class Table:
    """`with record.run(scenario, test) as seconds:` counts a run; what the block appends to
    `seconds` are its recovery times. A block that raises is a lost run."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    @contextlib.contextmanager
    def run(self, scenario: str, test: str) -> Iterator[list[float]]:
        row = self.rows.setdefault(scenario, Row())
        row.command = f"pytest --torture tests/torture -k {test}"
        row.runs += 1
        seconds: list[float] = []
        started_s = time.monotonic()
        try:
            yield seconds
            row.survived += 1
            row.seconds += seconds
        finally:
            RAW.parent.mkdir(exist_ok=True)
            took = round(time.monotonic() - started_s, 2)
            line = {"scenario": scenario, "recovery_s": seconds, "took_s": took}
            with RAW.open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    def count(self, scenario: str, test: str, runs: int, survived: int) -> None:
        """Runs that another process made."""
        row = self.rows.setdefault(scenario, Row())
        row.command = f"pytest --torture tests/torture -k {test}"
        row.runs += runs
        row.survived += survived

    def keep(self) -> None:
        """Replace the rows of the scenarios that ran; leave the others as they are."""
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        old, _, after = rest.partition(END)
        kept = {line.split("|")[1].strip(): line for line in old.splitlines() if "`pytest" in line}
        for scenario, row in self.rows.items():
            kept[scenario] = row.cells(scenario)
        body = HEAD + "\n".join(kept[name] for name in sorted(kept))
        PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")


def _quantile(values: list[float], share: float) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f} s"
