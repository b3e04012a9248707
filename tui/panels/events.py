"""What happened: newest first, and on attach what happened meanwhile, worst first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.feed import HISTORY_READ
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, cut, over
from trainer_tui.tui.panels.base import ListPanel
from trainer_tui.tui.view import Panel, Said, View

FRAME_ROWS = 6  # from here on the panel has a frame
OLDER_KEPT = 2000
LEFT_ALONE_S = 120.0  # then an older event is no longer held on to
NOTHING = " nothing has happened yet"
LEVELS = ("info", "warning", "error")


def sign(event: Said, glyphs: Glyphs) -> tuple[str, str]:
    if event.level == "error":
        return glyphs.cross, "bad"
    if event.level == "warning":
        return glyphs.warn, "warn"
    good = event.topic in ("checkpoint", "version", "validation") or " done" in event.text
    return (glyphs.check, "good") if good else (glyphs.note, "dim")


def today_of(view: View) -> date | None:
    """The reader's day by the daemon's clock, as the times of the events are."""
    return figures.date_of(view.status.now) if view.status else None


def event_line(event: Said, glyphs: Glyphs, today: date | None, short: bool = False) -> Line:
    mark, role = sign(event, glyphs)
    loud = {"error": "bad", "warning": "warn"}.get(event.level, "")
    clock = figures.clock(event.at, today, short)
    line = Line().add(f" {clock:<{5 if short else 8}} ", "dim").add(f"{mark} ", role)
    return line.add(printable(event.text), loud)


def compact(
    events: list[Said], width: int, height: int, glyphs: Glyphs, today: date | None
) -> list[Row]:
    """Without a frame; two short events share a row."""
    rows: list[Row] = []
    index = 0
    while index < len(events) and len(rows) < height:
        line = event_line(events[index], glyphs, today)
        index += 1
        if index < len(events):
            beside = event_line(events[index], glyphs, today, short=True)
            column = max(line.width + 2, min(44, width - beside.width))
            if column + beside.width <= width:
                line.to(column)
                line.spans += beside.spans
                line.width += beside.width
                index += 1
        rows.append(cut(tuple(line.spans), width))
    return rows


def away_rows(view: View, width: int, glyphs: Glyphs) -> list[Row]:
    """One row that sums up what was missed, with the worst of it; empty when nothing was."""
    if not view.away:
        return []
    worst = view.away[0]
    counts = [
        (sum(e.level == "error" for e in view.away), "error", "bad"),
        (sum(e.level == "warning" for e in view.away), "warning", "warn"),
    ]
    line = Line().add(" while you were away ", "title")
    line.add(f"{len(view.away)} events", "dim")
    for number, name, role in counts:
        if number:
            line.add(f", {number} {name}{'s' if number > 1 else ''}", role)
    line.add(f": {figures.clock(worst.at, today_of(view), short=True)}", "dim")
    line.add(f" {printable(worst.text)}", {"error": "bad", "warning": "warn"}.get(worst.level, ""))
    return [over(cut(tuple(line.spans), width), "select")]


def matching(said: Iterable[Said], wanted: str) -> list[Said]:
    words = wanted.lower().split()
    return [e for e in said if all(w in f"{e.level} {e.topic} {e.text}".lower() for w in words)]


def terms_of(wanted: str) -> dict[str, object]:
    """What to ask `GET /v1/history` for: a level where one is named, and the longest other word.
    What comes is a little more than what matches."""
    words = wanted.lower().split()
    levels = [level for level in LEVELS if level in words]
    rest = [word for word in words if word not in levels]
    asked: dict[str, object] = {"level": levels[0]} if len(levels) == 1 else {}
    return asked | ({"text": max(rest, key=len)[:200]} if rest else {})


class EventsPanel(ListPanel):
    number = 4
    title_text = "Events"
    sticky = False  # the newest are in sight until somebody goes to an older one

    def __init__(self) -> None:
        super().__init__(id=Panel.EVENTS.value)
        self._older: tuple[Said, ...] = ()  # from before the view's oldest, asked for by hand
        self._joint = 0  # the view's oldest when they came
        self._reached = 0  # the oldest that was looked at
        self.exhausted = False  # nothing older matches

    def _settle(self, keys: list[object]) -> int:
        """Whoever went to an older one and left finds the newest in sight again."""
        if self._key is not None and self.left_alone(LEFT_ALONE_S):
            self._key, self._top = None, 0
        return super()._settle(keys)

    @property
    def events(self) -> list[Said]:
        return matching((*self.screen_app.view.said, *self._still_older()), self._filter)

    def _still_older(self) -> tuple[Said, ...]:
        """The older events, unless newer ones have pushed those between out of the view."""
        said = self.screen_app.view.said
        if not said or not self._older:
            return ()
        oldest = said[-1].id
        if oldest > self._joint:
            return ()
        return tuple(event for event in self._older if event.id < oldest)

    def oldest_id(self) -> int | None:
        """Of those looked at, whether they match or not: where older ones end."""
        said = self.screen_app.view.said
        if not said:
            return None
        joined = self._reached and said[-1].id <= self._joint
        return min(said[-1].id, self._reached) if joined else said[-1].id

    def take_older(self, found: Sequence[Said], asked: int) -> int:
        """`found`: newest first, from before `oldest_id`; fewer than `asked` are the last. How
        many of them match."""
        last = self.oldest_id() or 0
        fresh = [event for event in found if event.id < last]  # asked twice at once: once
        more = matching(fresh, self._filter)
        self._older = (*self._still_older(), *more)[:OLDER_KEPT]
        said = self.screen_app.view.said
        self._joint = said[-1].id if said else 0
        self._reached = fresh[-1].id if fresh else last
        self.exhausted = len(found) < asked or len(self._older) >= OLDER_KEPT
        self.changed()
        return len(more)

    def find(self, text: str) -> None:
        """What an other filter brought has gaps, so it goes with that filter."""
        if text != self._filter:
            self._older, self._reached, self.exhausted = (), 0, False
        super().find(text)

    def step(self, rows: int) -> None:
        """Below the last one there are older ones."""
        keys = self.keys()
        if rows > 0 and keys and self.selected == keys[-1] and not self.exhausted:
            self.screen_app.do("older")
        super().step(rows)

    def keys(self) -> list[object]:
        return [event.id for event in self.events]

    def corner(self, width: int) -> Line | None:
        if self._filter:
            return Line().add(f"find {printable(self._filter, 20)}: {len(self.events)}", "warn")
        said = self.screen_app.view.said
        bad = sum(event.level == "error" for event in said)
        more = "+" if len(said) >= HISTORY_READ else ""  # older ones were not read
        many = "s" if bad > 1 or more else ""
        return Line().add(f"{bad}{more} error{many}", "bad") if bad else None

    def draw(self, width: int, height: int) -> list[Row]:
        view = self.screen_app.view
        if height >= FRAME_ROWS:
            return super().draw(width, height)
        away = away_rows(view, width, self.glyphs)[: height - 1]
        rows = away + compact(self.events, width, height - len(away), self.glyphs, today_of(view))
        if not rows:
            rows = [Line().add(NOTHING, "dim").row(width)]
        if self.has_focus and rows:
            rows[0] = over(rows[0], "select")
        return rows

    def inner(self, width: int, height: int) -> list[Row]:
        events = self.events
        self._settle(self.keys())
        away = away_rows(self.screen_app.view, width, self.glyphs)
        rows, today = list(away), today_of(self.screen_app.view)
        for index in self.window(len(events), height - len(away)):
            row = cut(tuple(event_line(events[index], self.glyphs, today).spans), width)
            if index == self._index and self.has_focus:
                row = over(row, "select")
            rows.append(row)
        if not events:
            words = " nothing matches; esc shows all" if self._filter else NOTHING
            rows.append(Line().add(words, "dim").row(width))
        return rows

    @property
    def event(self) -> Said | None:
        key = self.selected
        return next((event for event in self.events if event.id == key), None)

    def copy_text(self) -> str:
        event = self.event
        return f"{event.at} {event.level} {event.text}" if event else ""
