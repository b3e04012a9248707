"""When something happened: the time of today's events, the date of older ones, as the reader has
it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from trainer_tui.tui import figures, glyphs, reduce
from trainer_tui.tui.ink import Row, width_of
from trainer_tui.tui.panels.events import away_rows, compact, event_line
from trainer_tui.tui.view import History, Live, Panel, Said, Status, View
from trainer_tui.tui.watch import Seen, look

TODAY = date(2026, 11, 24)
OLD = Said(id=1, at="2026-11-12T09:30:00.000Z", level="error", text="trainer lost")
NEW = Said(id=2, at="2026-11-24T12:04:31.000Z", level="info", text="step 20")


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the reader's zone; UTC at first."""

    def be_in(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    be_in("UTC")
    yield be_in
    monkeypatch.undo()
    time.tzset()


def text_of(row: Row) -> str:
    return "".join(text for text, _ in row)


@pytest.mark.parametrize(
    ("at", "today", "short", "shown"),
    [
        ("2026-11-24T12:04:31.120Z", TODAY, False, "12:04:31"),
        ("2026-11-24T12:04:31.120Z", TODAY, True, "12:04"),
        ("2026-11-12T12:04:31.120Z", TODAY, False, "Nov 12"),
        ("2026-11-12T12:04:31.120Z", TODAY, True, "Nov 12"),
        ("2026-11-25T00:00:01Z", TODAY, False, "Nov 25"),
        ("2025-11-24T12:04:31Z", TODAY, False, "Nov 2025"),
        ("2025-11-24T12:04:31Z", None, False, "12:04:31"),
        (None, TODAY, True, "--:--"),
    ],
)
def test_the_date_of_another_day_stands_in_place_of_the_time(at, today, short, shown) -> None:
    assert figures.clock(at, today, short) == shown


def test_another_day_is_one_of_the_readers_zone(zone: Any) -> None:
    at = "2026-11-23T23:30:00Z"
    assert figures.clock(at, TODAY) == "Nov 23"
    zone("Asia/Tokyo")
    assert figures.date_of(at) == TODAY
    assert figures.clock(at, TODAY) == "08:30:00"


def test_events_of_two_days_stand_in_line() -> None:
    old, new = (event_line(event, glyphs.UNICODE, TODAY) for event in (OLD, NEW))
    assert text_of(tuple(old.spans)).startswith(" Nov 12   ")
    assert text_of(tuple(new.spans)).startswith(" 12:04:31 ")
    [row] = compact([NEW, OLD], 100, 1, glyphs.UNICODE, TODAY)
    assert " 12:04:31 " in text_of(row) and " Nov 12 " in text_of(row) and width_of(row) == 100


def test_what_was_missed_says_when() -> None:
    view = View(status=Status(now="2026-11-24T12:04:31.120Z"), link=Live())
    view, _ = reduce.reduce(view, reduce.HistoryCame(History(events=[OLD, NEW]), seen=0))
    assert "1 error: Nov 12 trainer lost" in text_of(away_rows(view, 100, glyphs.UNICODE)[0])


def test_at_midnight_the_events_are_drawn_anew() -> None:
    def status(now: str) -> reduce.StatusCame:
        return reduce.StatusCame(Status(now=now), 1.0)

    view, _ = reduce.reduce(View(), status("2026-11-24T23:58:59Z"))
    view, touched = reduce.reduce(view, status("2026-11-24T23:59:59Z"))
    assert Panel.EVENTS not in touched
    _, touched = reduce.reduce(view, status("2026-11-25T00:00:00Z"))
    assert Panel.EVENTS in touched


class Daemon:
    """Says that two events came since the last look."""

    def get(self, path: str) -> dict[str, Any]:
        if path.startswith("/v1/history"):
            kept = [{"id": e.id, "at": e.at, "level": e.level, "text": e.text} for e in (OLD, NEW)]
            return {"events": kept}
        state = {"training": {"state": "idle"}, "queue": {"waiting": 0}}
        return state | {"now": "2026-11-24T12:04:31.120Z"}


def test_watch_tells_the_date_of_an_older_event() -> None:
    told: list[str] = []
    look(Daemon(), Seen(state="idle", event_id=0), 0.0, told.append)
    assert told == ["Nov 12 error: trainer lost", "12:04:31 step 20"]
