"""The points of the history: stored, thinned as they age, drawn.

Points are kept as they came and, beside that, summed into buckets of 16, 256, 4096 and 65536
steps, so that a million points are drawn from a few thousand rows. Of each series the newest
`KEPT` rows of every level stay; what is older is drawn from the next coarser level, with its means
and extremes.

Invariant: below the floor of a level nothing is drawn from it. Floors are multiples of the
coarsest width, so that no bucket of any level lies on both sides of one: nothing is drawn twice.

Limit: where training goes back below a floor, the one bucket of each width that holds the step
has what was there before, too.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

BUCKET_STEPS = (16, 256, 4096, 65536)
COARSEST = BUCKET_STEPS[-1]
LEVELS = (0, *BUCKET_STEPS)  # 0: point by point
KEPT = {0: 200_000, 16: 50_000, 256: 50_000, 4096: 50_000}  # rows of a series, by level
THINNED_AT_ONCE = 5_000  # rows of one transaction: a few hundredths of a second
WIDER = 1.3  # how much wider than asked a bucket may be, so that stored ones serve

SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
  series TEXT NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (series, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS buckets (
  series TEXT NOT NULL, width INTEGER NOT NULL, bucket INTEGER NOT NULL, at REAL NOT NULL,
  count INTEGER NOT NULL, total REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
  PRIMARY KEY (series, width, bucket)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (
  series TEXT NOT NULL, level INTEGER NOT NULL, step INTEGER NOT NULL,
  PRIMARY KEY (series, level)) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (series, width, bucket) DO UPDATE SET
  at = excluded.at, count = count + excluded.count, total = total + excluded.total,
  low = min(low, excluded.low), high = max(high, excluded.high)
"""


@dataclass(frozen=True, slots=True)
class Point:
    series: str
    step: int
    at_s: float
    value: float


# --- storing -------------------------------------------------------------------------------------


def insert(base: sqlite3.Connection, points: list[Point]) -> None:
    """Call inside a transaction."""
    for series, step in _gone_back(base, points):
        _forget_from(base, series, step)
    base.executemany(
        "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)",
        [(p.series, p.step, p.at_s, p.value) for p in points],
    )
    base.executemany(_UPSERT, _bucketed(points))


def _bucketed(points: list[Point]) -> list[tuple[Any, ...]]:
    """The bucket rows that these points add to, summed first so that each is written once."""
    sums: dict[tuple[str, int, int], list[float]] = {}
    for point in points:
        for width in BUCKET_STEPS:
            key = (point.series, width, point.step // width)
            found = sums.get(key)
            if found is None:
                sums[key] = [point.at_s, 1, point.value, point.value, point.value]
            else:
                found[0] = point.at_s
                found[1] += 1
                found[2] += point.value
                found[3] = min(found[3], point.value)
                found[4] = max(found[4], point.value)
    return [(*key, values[0], int(values[1]), *values[2:]) for key, values in sums.items()]


# --- beginning again -----------------------------------------------------------------------------


def forget(base: sqlite3.Connection) -> None:
    """All of it: training begins again with the base model, and so do the steps."""
    with _transaction(base):
        for table in ("points", "buckets", "floors"):
            base.execute(f"DELETE FROM {table}")


def forget_beyond(base: sqlite3.Connection, step: int) -> None:
    """What comes after this step was learnt by a trainer that died before it had saved it."""
    with _transaction(base):
        for series in list(names(base)):
            _forget_from(base, series, step + 1)


@contextlib.contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    base.execute("BEGIN")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        if base.in_transaction:
            base.execute("ROLLBACK")
        raise


def _gone_back(base: sqlite3.Connection, points: list[Point]) -> list[tuple[str, int]]:
    """(series, first step) of those that come below the floor of the points, which is where only
    what is old may be: an older checkpoint is in use."""
    floors = dict(base.execute("SELECT series, step FROM floors WHERE level = 0"))
    lowest: dict[str, int] = {}
    for point in points:
        if point.step < floors.get(point.series, 0):
            lowest[point.series] = min(point.step, lowest.get(point.series, point.step))
    return list(lowest.items())


def _forget_from(base: sqlite3.Connection, series: str, step: int) -> None:
    """What another run learnt from this step on, and the floors that it had raised above it."""
    base.execute("DELETE FROM points WHERE series = ? AND step >= ?", (series, step))
    for width in BUCKET_STEPS:
        first = -(-step // width)
        where = "series = ? AND width = ? AND bucket >= ?"
        base.execute(f"DELETE FROM buckets WHERE {where}", (series, width, first))
    floor = -(-step // COARSEST) * COARSEST  # below it points are gone
    if floor:
        lower = "UPDATE floors SET step = min(step, ?) WHERE series = ?"
        base.execute(lower, (floor, series))
    else:
        base.execute("DELETE FROM floors WHERE series = ?", (series,))


# --- thinning ------------------------------------------------------------------------------------


def names(base: sqlite3.Connection) -> Iterator[str]:
    """Every series that has points, by one seek each."""
    name: str | None = ""
    while True:
        name = base.execute("SELECT min(series) FROM buckets WHERE series > ?", (name,)).fetchone()[
            0
        ]
        if name is None:
            return
        yield name


def thin(base: sqlite3.Connection, series: str, level: int) -> bool:
    """Let go of some rows of a level that are older than the newest `KEPT`, in one transaction.
    True: there are more."""
    rows = _Rows(base, series, level)
    oldest_kept = rows.nth("", "DESC", KEPT[level] - 1)
    if oldest_kept is None:
        return False
    floor = max(oldest_kept // COARSEST * COARSEST, _floors(base, series).get(level, 0))
    end = rows.nth(f"AND {rows.key} < {floor // rows.width}", "ASC", THINNED_AT_ONCE)
    with _transaction(base):
        # The floor comes first or at once: a row that is gone must be drawn from a coarser level.
        base.execute("INSERT OR REPLACE INTO floors VALUES (?, ?, ?)", (series, level, floor))
        rows.delete_below(floor if end is None else end)
    return end is not None


class _Rows:
    """The rows of one series at one level; `key` is their column of `width` steps."""

    def __init__(self, base: sqlite3.Connection, series: str, level: int) -> None:
        self._base, self.width = base, max(1, level)
        self.key = "bucket" if level else "step"
        where = "buckets WHERE series = ? AND width = ?" if level else "points WHERE series = ?"
        self._where, self._values = where, (series, level) if level else (series,)

    def nth(self, more: str, order: str, offset: int) -> int | None:
        """The step of the n-th row; None: there are fewer."""
        text = f"SELECT {self.key} FROM {self._where} {more} ORDER BY {self.key} {order}"
        found = self._base.execute(f"{text} LIMIT 1 OFFSET ?", (*self._values, offset)).fetchone()
        return int(found[0]) * self.width if found else None

    def end(self, which: str) -> int | None:
        """`which`: min | max."""
        text = f"SELECT {which}({self.key}) FROM {self._where}"
        found = self._base.execute(text, self._values).fetchone()[0]
        return None if found is None else int(found) * self.width

    def delete_below(self, step: int) -> None:
        text = f"DELETE FROM {self._where} AND {self.key} < ?"
        self._base.execute(text, (*self._values, step // self.width))


def _floors(base: sqlite3.Connection, series: str) -> dict[int, int]:
    """The lowest step that is drawn from a level, where that is not all of it."""
    return dict(base.execute("SELECT level, step FROM floors WHERE series = ?", (series,)))


# --- drawing -------------------------------------------------------------------------------------


def select(
    base: sqlite3.Connection,
    series: list[str],
    from_step: int | None,
    to_step: int | None,
    points: int,
) -> dict[str, Any]:
    """At most `points` buckets of every series, as `GET /v1/metrics` answers."""
    ends = [end for name in series if (end := _ends(base, name)) is not None]
    first = from_step if from_step is not None else min((low for low, _ in ends), default=0)
    last = to_step if to_step is not None else max((high for _, high in ends), default=0)
    width = max(1, -(-(last - first + 1) // points))
    lines = {name: _line(base, name, first, last, width) for name in series}
    return {"series": lines, "from_step": first, "to_step": last}


def _ends(base: sqlite3.Connection, series: str) -> tuple[int, int] | None:
    """First and last step of a series, by one seek each; None: it has no points."""
    floors = _floors(base, series)
    whole = next(level for level in LEVELS if level not in floors)
    low, high = _Rows(base, series, whole).end("min"), _Rows(base, series, 0).end("max")
    return None if low is None or high is None else (low, high)


def _line(
    base: sqlite3.Connection, series: str, first: int, last: int, width: int
) -> list[dict[str, Any]]:
    """One series in buckets of about `width` steps, summed by SQLite from the coarsest rows that
    fit into them; where those are gone, from the finest that are left."""
    stored, width = _stored_width(width)
    floors = _floors(base, series)
    slots: dict[int, tuple[Any, ...]] = {}
    for level in LEVELS[LEVELS.index(stored) :]:
        low = max(first, floors.get(level, 0))
        for slot, *values in _summed(base, series, level, (first, width), (low, last)):
            slots[slot] = _merged(slots[slot], values) if slot in slots else tuple(values)
        last = min(last, low - 1)
        if last < first:
            break
    return [
        {"step": step, "mean": total / count, "min": low, "max": high, "at": _iso(at_s)}
        for _, (step, at_s, count, total, low, high) in sorted(slots.items())
    ]


def _summed(
    base: sqlite3.Connection,
    series: str,
    level: int,
    shape: tuple[int, int],
    steps: tuple[int, int],
) -> sqlite3.Cursor:
    """Rows (slot, last step, last time, count, total, low, high). `shape`: first step and width of
    the slots; `steps`: from where to where."""
    low, high = steps
    if not level:
        return base.execute(_FROM_POINTS, (0, *shape, series, low, high))
    return base.execute(_FROM_BUCKETS, (level, *shape, series, level, low // level, high // level))


def _merged(left: tuple[Any, ...], right: list[Any]) -> tuple[Any, ...]:
    """Two parts of one slot."""
    return (
        max(left[0], right[0]), max(left[1], right[1]), left[2] + right[2], left[3] + right[3],
        min(left[4], right[4]), max(left[5], right[5]),
    )  # fmt: skip


def _stored_width(width: int) -> tuple[int, int]:
    """(steps of the stored buckets to sum, steps of a bucket of the answer); (0, width): points.
    Whole stored buckets make one of the answer, which so becomes a little wider than asked."""
    for stored in reversed(BUCKET_STEPS):
        whole = -(-width // stored) * stored
        if whole <= WIDER * width:
            return stored, whole
    return 0, width


_FROM_BUCKETS = """
SELECT max(0, bucket * ?1 - ?2) / ?3 AS slot, max(bucket * ?1), max(at), sum(count), sum(total),
       min(low), max(high)
  FROM buckets WHERE series = ?4 AND width = ?5 AND bucket BETWEEN ?6 AND ?7 GROUP BY slot
"""
_FROM_POINTS = """
SELECT (step - ?2) / ?3 + 0 * ?1 AS slot, max(step), max(at), count(*), sum(value),
       min(value), max(value)
  FROM points WHERE series = ?4 AND step BETWEEN ?5 AND ?6 GROUP BY slot
"""


def _iso(at_s: float) -> str:
    moment = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
