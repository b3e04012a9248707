"""`state/history.db`: metrics and events for looking back, on one thread with one connection.

Never consulted for correctness. A database that cannot be used is moved aside, said, and begun
anew; a full disk costs history, never training. One connection in one process, because SQLite
before 3.51.3 can corrupt a write-ahead log that several use.

Points are the business of `curves.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trainer_tui.daemon import curves
from trainer_tui.daemon.curves import Point
from trainer_tui.safety import clock
from trainer_tui.safety.errors import is_lack

log = logging.getLogger("history")
T = TypeVar("T")
COMMIT_EVERY_S = 1.0
BACKLOG = 20_000  # points waiting for the thread; beyond that they are dropped, and counted
EVENTS_KEPT = 200_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, level TEXT NOT NULL, topic TEXT NOT NULL,
  text TEXT NOT NULL, data TEXT NOT NULL);
"""


class Event(msgspec.Struct, frozen=True):
    """Something people may want to know. `level`: info | warning | error."""

    id: int
    at: str
    level: str
    topic: str
    text: str
    data: dict[str, Any] = {}


class History:
    """Every public method may be called from any thread; work is done on this one's own."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """`say(text)` is called, from the history thread, when the database had to be given up."""
        self._path = path
        self._say = say
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._points: list[Point] = []
        self._events: list[Event] = []
        self._buffer_lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def add_points(self, points: list[Point]) -> None:
        with self._buffer_lock:
            if len(self._points) + len(points) > BACKLOG:
                self.dropped += len(points)
                return
            self._points += points

    def add_event(self, event: Event) -> None:
        with self._buffer_lock:
            self._events.append(event)

    def last_event_id(self) -> Future[int]:
        return self.ask(lambda base: int(_one(base, "SELECT coalesce(max(id), 0) FROM events")))

    def events(
        self, limit: int, before: int | None, level: str | None, text: str | None
    ) -> Future[list[Event]]:
        """Newest first. `text` is looked for in topic and text, without regard to case."""
        return self.ask(lambda base: _select_events(base, limit, before, level, text))

    def metrics(
        self, series: list[str], from_step: int | None, to_step: int | None, points: int
    ) -> Future[dict[str, Any]]:
        """At most `points` buckets of every series, as `GET /v1/metrics` answers."""
        return self.ask(lambda base: curves.select(base, series, from_step, to_step, points))

    def last_values(self, series: list[str]) -> Future[dict[str, tuple[int, float]]]:
        """The newest (step, value) of each series that has any."""
        return self.ask(lambda base: _last_values(base, series))

    def begin_again(self) -> None:
        """Training begins with the base model: points of a run before it are another curve's."""
        with self._buffer_lock:
            self._points = []
        self._do(curves.forget)

    def go_on_from(self, step: int) -> None:
        """A trainer begins at this step: points beyond it are of steps that nobody has learnt."""
        with self._buffer_lock:
            self._points = [point for point in self._points if point.step <= step]
        self._do(lambda base: curves.forget_beyond(base, step))

    def prune(self) -> None:
        """Let go of the oldest events beyond `EVENTS_KEPT`, and thin old points out: a little at a
        time, so that what comes meanwhile is stored and questions are answered."""
        oldest = "SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?"
        text = f"DELETE FROM events WHERE id <= ({oldest})"
        self._do(lambda base: base.execute(text, (EVENTS_KEPT,)))

        def begin(base: sqlite3.Connection) -> None:
            for series in curves.names(base):
                for level in curves.KEPT:
                    self._thin(series, level)

        self._do(begin)

    def _thin(self, series: str, level: int) -> None:
        def work(base: sqlite3.Connection) -> None:
            if curves.thin(base, series, level):
                self._thin(series, level)

        self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """As `ask`, where nobody waits for an answer."""
        self.ask(work).add_done_callback(_log_failure)

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run `question` on the history thread, after everything added before it was stored."""
        answer: Future[T] = Future()

        def stored_first(base: sqlite3.Connection) -> T:
            self._store(base)
            return question(base)

        def work() -> None:
            try:
                answer.set_result(self._guarded(stored_first))
            except (sqlite3.Error, OSError) as problem:
                answer.set_exception(problem)

        self._work.put(work)
        return answer

    def close(self, timeout_s: float = 5.0) -> None:
        self._work.put(None)
        self._thread.join(timeout_s)

    # --- the history thread ----------------------------------------------------------------------

    def _run(self) -> None:
        running = True
        while running:
            try:
                work = self._work.get(timeout=COMMIT_EVERY_S)
            except queue.Empty:
                self._store_quietly()
                continue
            if work is None:
                running = False
                self._store_quietly()
            else:
                work()
        if self._connection is not None:
            self._connection.close()

    def _store_quietly(self) -> None:
        with self._buffer_lock:
            if not self._points and not self._events:
                return
        try:
            self._guarded(self._store)
        except (sqlite3.Error, OSError) as problem:
            self._say(f"history was not stored: {problem}")

    def _guarded(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do it; when the database is damaged, move it aside and do it on a new one."""
        try:
            return action(self._open())
        except sqlite3.DatabaseError as problem:
            shut = self._connection is None and self._is_shut()
            if not (_is_damage(problem) or shut):
                raise
            self._move_aside(problem)
            return action(self._open())

    def _is_shut(self) -> bool:
        """Whether one of its files is there and may not be opened, or is none. Asked only where
        no connection is open: closing a file drops the process's locks on it."""
        for suffix in ("", "-wal", "-shm"):
            try:
                os.close(os.open(f"{self._path}{suffix}", os.O_RDWR | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
            except OSError as problem:
                return not (is_lack(problem) or problem.errno == errno.EROFS)
        return False

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            base = sqlite3.connect(self._path, isolation_level=None, check_same_thread=True)
            try:
                base.execute("PRAGMA journal_mode=WAL")
                base.execute("PRAGMA synchronous=NORMAL")
                base.execute("PRAGMA cache_size=-4000")
                base.executescript(curves.SCHEMA + _SCHEMA)
            except BaseException:
                base.close()
                raise
            self._connection = base
        return self._connection

    def _move_aside(self, problem: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = self._path.with_name(f"{self._path.name}.broken-{int(clock.now_s())}")
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if os.path.lexists(part):
                part.rename(aside.with_name(aside.name + suffix))
        self._say(f"history.db could not be used ({problem}); it is now {aside.name}")

    def _store(self, base: sqlite3.Connection) -> None:
        with self._buffer_lock:
            points, self._points = self._points, []
            events, self._events = self._events, []
        if not points and not events:
            return
        base.execute("BEGIN")
        try:
            curves.insert(base, points)
            base.executemany(
                "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (e.id, e.at, e.level, e.topic, e.text, msgspec.json.encode(e.data).decode())
                    for e in events
                ],
            )
            base.execute("COMMIT")
        except BaseException:
            with self._buffer_lock:  # kept for the next try, within the bound
                self._points = (points + self._points)[-BACKLOG:]
                self._events = (events + self._events)[-BACKLOG:]
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise


def _log_failure(answer: Future[Any]) -> None:
    if problem := answer.exception():
        log.warning("history was not tidied: %s", problem)


def _is_damage(problem: sqlite3.DatabaseError) -> bool:
    """A bad medium or malformed pages; busy, locked, full, no such table: not damage."""
    if isinstance(problem, sqlite3.OperationalError) and "disk" not in str(problem):
        return False
    return "full" not in str(problem)


def _one(base: sqlite3.Connection, question: str, *values: object) -> Any:
    return base.execute(question, values).fetchone()[0]


def _last_values(base: sqlite3.Connection, series: list[str]) -> dict[str, tuple[int, float]]:
    found = {}
    for name in series:
        row = base.execute(
            "SELECT step, value FROM points WHERE series = ? ORDER BY step DESC LIMIT 1", (name,)
        ).fetchone()
        if row is not None:
            found[name] = (int(row[0]), float(row[1]))
    return found


def _select_events(
    base: sqlite3.Connection, limit: int, before: int | None, level: str | None, text: str | None
) -> list[Event]:
    wheres, values = ["1"], []
    if before is not None:
        wheres.append("id < ?")
        values.append(str(before))
    if level is not None:
        wheres.append("level = ?")
        values.append(level)
    if text:
        wheres.append("instr(lower(topic || ' ' || text), lower(?)) > 0")
        values.append(text)
    rows = base.execute(
        f"SELECT * FROM events WHERE {' AND '.join(wheres)} ORDER BY id DESC LIMIT {int(limit)}",
        values,
    )
    return [
        Event(number, at, row_level, topic, said, msgspec.json.decode(data))
        for number, at, row_level, topic, said, data in rows
    ]
