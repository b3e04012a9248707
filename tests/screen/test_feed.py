"""How often the feed reads everything anew when the stream of events fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from trainer_tui.safety.errors import NoDaemon
from trainer_tui.tui import feed
from trainer_tui.tui.remote import Event

LOOKS = 6


class Dying:
    """A backend whose snapshot is good and whose stream ends after `lives_s` on its clock."""

    def __init__(self, lives_s: float) -> None:
        self.now_s, self._lives_s = 1000.0, lives_s

    async def get(self, path: str, params: Any = None) -> bytes:
        empty = {"/v1/metrics": b'{"series": {}}', "/v1/config": b'{"values": {}}'}
        return empty.get(path, b"{}")

    async def events(self, last_id: str | None) -> AsyncIterator[Event]:
        yield Event("1", "status", b"{}")
        self.now_s += self._lives_s
        raise NoDaemon("the daemon closed the connection")


async def waited(lives_s: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the attempts that the feed waited for."""
    backend = Dying(lives_s)
    attempts: list[int] = []
    done = asyncio.Event()

    async def wait(attempt: int, hurry: asyncio.Event) -> None:
        attempts.append(attempt)
        if len(attempts) == LOOKS:
            done.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(feed, "wait", wait)
    monkeypatch.setattr(feed.clock, "monotonic_s", lambda: backend.now_s)
    running = asyncio.create_task(feed.Feed(backend, lambda came: None).run())  # type: ignore[arg-type]
    await asyncio.wait_for(done.wait(), 20)
    running.cancel()
    return attempts


async def test_a_stream_that_always_fails_is_asked_for_less_and_less(monkeypatch) -> None:
    assert await waited(0.1, monkeypatch) == [1, 2, 3, 4, 5, 6]


async def test_a_stream_that_lived_is_asked_for_at_once(monkeypatch) -> None:
    assert await waited(feed.STEADY_S, monkeypatch) == [1] * LOOKS
