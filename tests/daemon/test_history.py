"""History: a million points in a glance, and a broken database costs nothing but itself."""

from __future__ import annotations

import sqlite3
import time

import pytest
from daemon_harness import wait_for

from trainer_tui.daemon import curves
from trainer_tui.daemon.curves import Point
from trainer_tui.daemon.history import Event, History

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
    assert time.perf_counter() - started < 0.3
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


@pytest.fixture
def thinner(monkeypatch) -> None:
    """Little is kept, so that a test has something to thin."""
    monkeypatch.setattr(curves, "KEPT", {0: 10_000, 16: 3_000, 256: 1_000, 4096: 1_000})


def count(base) -> dict[int, int]:
    """How many rows of the loss each level has."""
    by_width = "SELECT width, count(*) FROM buckets WHERE series = 'loss' GROUP BY width"
    points = base.execute("SELECT count(*) FROM points WHERE series = 'loss'").fetchone()[0]
    return {0: points, **dict(base.execute(by_width))}


def rows(history: History) -> dict[int, int]:
    return history.ask(count).result(10)


def thinned(history: History) -> None:
    """Prune, and wait for the end of it."""
    history.prune()
    wait_for(lambda: rows(history)[0] <= 10_000 + curves.COARSEST)
    wait_for(lambda: rows(history)[16] <= 3_000 + curves.COARSEST // 16)


def line(history: History, first: int | None, last: int | None, points: int) -> list[dict]:
    return history.metrics(["loss"], first, last, points).result(10)["series"]["loss"]


def test_old_points_are_thinned_and_the_chart_stays_as_it_was(history, thinner):
    fill(history, 300_000)
    asked = [(None, None, 400), (None, None, 30), (100_000, 280_000, 60), (262_144, 299_999, 5000)]
    before = [line(history, *one) for one in asked]
    thinned(history)
    after = [line(history, *one) for one in asked]
    for old, new in zip(before, after, strict=True):
        assert [b["step"] for b in new] == [b["step"] for b in old]
        for part in ("mean", "min", "max"):
            assert [b[part] for b in new] == pytest.approx([b[part] for b in old])
    assert history.metrics(["loss"], None, None, 9).result(10)["from_step"] == 0


def test_a_close_look_at_what_was_thinned_shows_the_finest_that_is_left(history, thinner):
    fill(history, 300_000)
    floor = 262_144  # of points; buckets of 16 go further back
    old = line(history, floor - 512, floor - 1, 512)
    new = line(history, floor, floor + 299, 300)
    thinned(history)
    seen = line(history, floor - 512, floor + 299, 812)
    assert seen[32:] == new, "nothing that is left is drawn twice, or moved"
    for bucket, whole in zip(seen[:32], zip(*[iter(old)] * 16, strict=True), strict=True):
        assert bucket["mean"] == pytest.approx(sum(point["mean"] for point in whole) / 16)
        assert bucket["max"] == whole[0]["mean"] and bucket["min"] == whole[-1]["mean"]


def test_thinning_goes_in_small_transactions_between_which_steps_are_stored(history, thinner):
    fill(history, 300_000)
    total = rows(history)[0]
    assert history.ask(lambda base: curves.thin(base, "loss", 0)).result(10) is True
    assert rows(history)[0] == total - curves.THINNED_AT_ONCE
    assert len(line(history, 0, 299_999, 5000)) > 3000, "whole at every moment"

    def asked_at_once(_):  # on the history's thread, so that nothing is thinned in between
        history.prune()
        history.add_points([Point("loss", 300_000, 0.0, 7.0)])
        return history.last_values(["loss"]), history.ask(count)

    last, counted = history.ask(asked_at_once).result(10)
    assert last.result(10) == {"loss": (300_000, 7.0)}
    assert counted.result(10)[0] > 10_000 + curves.COARSEST, "answered before the thinning is done"
    thinned(history)
    wait_for(lambda: not history.ask(lambda base: curves.thin(base, "loss", 0)).result(10))


def test_a_series_of_few_points_is_kept_whole(history, thinner):
    history.add_points([Point("val_loss", step * 1000, float(step), 1.0) for step in range(5000)])
    fill(history, 300_000)
    thinned(history)
    found = history.metrics(["val_loss"], 0, 99_999, 5000).result(10)["series"]["val_loss"]
    assert [bucket["step"] for bucket in found] == list(range(0, 100_000, 1000))


def test_a_bucket_of_points_and_of_what_was_thinned_has_both(history, thinner):
    fill(history, 300_000)
    first = 262_144 - 16 - 10 * 17  # so that the eleventh begins one stored bucket below the floor
    whole = line(history, first, first + 20 * 17 - 1, 20)[10]
    thinned(history)
    assert line(history, first, first + 20 * 17 - 1, 20)[10] == pytest.approx(whole)


def stored(history: History, first: int, last: int, value: float) -> None:
    """As the daemon does it, in batches."""
    for start in range(first, last, 1000):
        end = min(start + 1000, last)
        history.add_points([Point("loss", step, 0.0, value) for step in range(start, end)])
        history.last_event_id().result(10)


def test_training_that_begins_again_has_a_curve_of_its_own(history, thinner):
    fill(history, 300_000)
    thinned(history)
    history.add_points([Point("loss", 300_000, 0.0, 7.0)])
    history.begin_again()
    assert history.metrics(["loss"], None, None, 9).result(10)["series"]["loss"] == []
    stored(history, 1, 5001, 2.0)
    thinned(history)
    new = line(history, 1, 5000, 5000)
    assert [bucket["step"] for bucket in new] == list(range(1, 5001)), "point by point"
    assert {(b["mean"], b["min"], b["max"]) for b in new} == {(2.0, 2.0, 2.0)}
    coarse = line(history, None, None, 9)
    assert {bucket["mean"] for bucket in coarse} == {2.0}


@pytest.mark.parametrize("first", [0, 65_536, 70_001])
def test_steps_that_come_below_the_floor_are_not_mixed_with_those_before(history, thinner, first):
    fill(history, 300_000)
    thinned(history)
    before = line(history, 0, 65_535, 16)
    stored(history, first, first + 2000, 5000.0)
    last = first + 1999
    assert history.metrics(["loss"], None, None, 400).result(10)["to_step"] == last
    new = line(history, first + 256, last, 2000)  # one bucket may hold both
    assert {bucket["mean"] for bucket in new} == {5000.0}
    if first % curves.COARSEST == 0:
        assert [bucket["step"] for bucket in new] == list(range(first + 256, last + 1))
    if first:
        assert line(history, 0, 65_535, 16) == before


def test_an_older_checkpoint_above_the_floor_costs_no_point(history, thinner):
    fill(history, 300_000)
    thinned(history)
    stored(history, 290_000, 291_000, 2.0)
    assert line(history, 299_999, 299_999, 1)[0]["step"] == 299_999


@pytest.mark.parametrize("step", [290_000, 100_000, 70_001])
def test_what_a_trainer_lost_is_no_part_of_the_curve(history, thinner, step):
    """It died before it had saved these steps; the next one goes on from `step`."""
    fill(history, 300_000)
    thinned(history)
    before = line(history, 0, 65_535, 16)
    history.add_points([Point("loss", 300_000, 0.0, 7.0)])
    history.go_on_from(step)
    found = history.metrics(["loss"], None, None, 400).result(10)
    assert found["to_step"] <= step
    history.add_points([Point("loss", step + 1, 0.0, 7.0)])
    assert history.last_values(["loss"]).result(10) == {"loss": (step + 1, 7.0)}
    assert line(history, 0, 65_535, 16) == before


def test_a_trainer_that_lost_nothing_costs_no_point(history, thinner):
    fill(history, 300_000)
    thinned(history)
    whole, counted = line(history, None, None, 400), rows(history)
    history.go_on_from(299_999)
    assert (line(history, None, None, 400), rows(history)) == (whole, counted)
