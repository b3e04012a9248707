"""A part that keeps failing is tried ever less often, and what it says is said once."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from trainer_tui.daemon import steady


class Day:
    """A clock that only a wait or a run moves."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.waits_s: list[float] = []
        self.said: list[str] = []

    def now_s(self) -> float:
        return self.at_s

    async def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.at_s += wait_s

    def say(self, level: str, topic: str, text: str) -> None:
        assert (level, topic) == ("error", "daemon")
        self.said.append(text)


async def live(day: Day, failures: list[tuple[float, str]]) -> None:
    """A part that runs so long and then fails, one after the other, and then ends well."""
    left = iter(failures)

    async def run() -> None:
        for ran_s, text in left:
            day.at_s += ran_s
            raise OSError(text)

    await steady.steady("upkeep", run, day.say, day.sleep, day.now_s)


async def test_the_same_failure_is_said_once_and_tried_ever_less_often() -> None:
    day = Day()
    await live(day, [(0.0, "no rights")] * 300)
    assert day.waits_s[:8] == [3, 6, 12, 24, 48, 96, 192, 300]
    assert set(day.waits_s[8:]) == {300}
    [said] = day.said
    assert said.startswith("upkeep: no rights; tried again in 3 s")


async def test_another_sentence_is_said() -> None:
    day = Day()
    await live(day, [(0.0, "no rights"), (0.0, "no room"), (0.0, "no room")])
    assert [said.split(";")[0] for said in day.said] == ["upkeep: no rights", "upkeep: no room"]


async def test_after_a_good_while_it_is_news_and_tried_at_once() -> None:
    day = Day()
    await live(day, [(0.0, "no room"), (0.0, "no room"), (steady.WELL_S, "no room")])
    assert len(day.said) == 2
    assert day.waits_s == [3, 6, 3]


async def test_the_end_of_the_daemon_wakes_a_part_that_has_just_failed() -> None:
    """The trainer is told to save and end by such a part; it would be killed before."""
    ending, runs = asyncio.Event(), []

    async def run() -> None:
        runs.append(time.monotonic())
        if len(runs) == 1:
            raise OSError("the disk is full")

    def say(*words: str) -> None:
        ending.set()  # the daemon is asked to end just then

    await asyncio.wait_for(steady.steady("training", run, say, partial(steady.nap, ending)), 20)
    assert runs[1] - runs[0] < steady.FIRST_S


async def test_a_part_that_fails_while_the_daemon_ends_is_no_busy_loop() -> None:
    ending, runs = asyncio.Event(), []
    ending.set()

    async def run() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise OSError("the disk is full")

    started_s = time.monotonic()
    await steady.steady("training", run, lambda *words: None, partial(steady.nap, ending))
    assert time.monotonic() - started_s >= 2 * steady.AT_THE_END_S
