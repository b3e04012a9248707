"""History: a million points in a glance, and a broken database costs nothing but itself."""

from __future__ import annotations

import sqlite3
import time

import pytest

from trainer_tui.daemon.history import Event, History, Point

MILLION = 1_000_000


@pytest.fixture
def history(tmp_path):
    said: list[str] = []
    made = History(tmp_path / "history.db", said.append)
    made.said = said
    made.start()
    yield made
    made.close()


def fill(history: History, count: int, series: str = "loss") -> None:
    """Straight into the tables: the path of a week of training, without the week."""

    def insert(base) -> None:
        base.execute("BEGIN")
        base.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)"
            " INSERT INTO points SELECT ?, i, 1.0 * i, 1000.0 / (i + 1) FROM n",
            (count, series),
        )
        for width in (16, 256, 4096, 65536):
            base.execute(
                "INSERT INTO buckets SELECT series, ?, step / ?, max(at), count(*), sum(value),"
                " min(value), max(value) FROM points WHERE series = ? GROUP BY step / ?",
                (width, width, series, width),
            )
        base.execute("COMMIT")

    history.ask(insert).result(60)


def test_a_million_points_are_drawn_within_300_ms(history):
    fill(history, MILLION)
    started = time.perf_counter()
    found = history.metrics(["loss", "val_loss"], None, None, 400).result(10)
    took = time.perf_counter() - started
    assert took < 0.3, f"{took * 1000:.0f} ms"
    line = found["series"]["loss"]
    assert 200 <= len(line) <= 400
    assert (found["from_step"], found["to_step"]) == (0, MILLION - 1)
    assert line[0]["max"] == 1000.0 and line[-1]["min"] == pytest.approx(1000.0 / MILLION)
    assert found["series"]["val_loss"] == []
    started = time.perf_counter()
    zoomed = history.metrics(["loss"], 500_000, 500_399, 400).result(10)["series"]["loss"]
    assert time.perf_counter() - started < 0.05
    assert [bucket["step"] for bucket in zoomed] == list(range(500_000, 500_400))


def test_buckets_keep_what_stands_out(history):
    points = [Point("loss", step, float(step), 1.0) for step in range(5000)]
    points[2500] = Point("loss", 2500, 2500.0, 99.0)
    for start in range(0, 5000, 700):  # in several batches, cut anywhere
        history.add_points(points[start : start + 700])
        history.last_event_id().result(10)
    line = history.metrics(["loss"], None, None, 20).result(10)["series"]["loss"]
    assert len(line) <= 20
    assert max(bucket["max"] for bucket in line) == 99.0
    total = sum(p.value for p in points) / 5000
    assert sum(bucket["mean"] for bucket in line) / len(line) == pytest.approx(total, rel=0.01)


def test_events_come_back_newest_first_and_filtered(history):
    for number in range(1, 6):
        level = "error" if number == 3 else "info"
        history.add_event(Event(number, "now", level, "t", f"Event Nr {number}", {"n": number}))
    found = history.events(3, None, None, None).result(10)
    assert [event.id for event in found] == [5, 4, 3]
    assert [event.id for event in history.events(10, 3, None, None).result(10)] == [2, 1]
    assert [event.id for event in history.events(10, None, "error", None).result(10)] == [3]
    assert history.events(10, None, None, "nr 4").result(10)[0].data == {"n": 4}
    assert history.last_event_id().result(10) == 5


def test_a_database_that_breaks_while_open_is_moved_aside_and_nothing_new_is_lost(
    history, tmp_path
):
    history.add_event(Event(1, "now", "info", "t", "before"))
    assert history.last_event_id().result(10) == 1
    broken = []

    def damaged(base) -> int:
        if not broken:
            broken.append(base)
            raise sqlite3.DatabaseError("database disk image is malformed")
        return len(base.execute("SELECT * FROM events").fetchall())

    assert history.ask(damaged).result(10) == 0, "answered by a new database"
    history.add_event(Event(2, "now", "info", "t", "after"))
    assert [event.id for event in history.events(9, None, None, None).result(10)] == [2]
    [aside] = [path for path in tmp_path.glob("history.db.broken-*") if path.suffix[-1].isdigit()]
    with sqlite3.connect(aside) as old:
        assert old.execute("SELECT text FROM events").fetchall() == [("before",)]
    assert "could not be used" in history.said[0]
