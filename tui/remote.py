"""The daemon, over its Unix socket: requests, and one stream of news that mends itself.

Invariant: whatever happens to the daemon, `listen` goes on: it reads everything anew (or resumes
from the last event's id), and tries again after 0.2 s, doubling to 5 s.
Limits: one request at a time waits `TIMEOUT_S`; a silent stream counts as lost after 40 s (the
daemon sends a comment every 15 s).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import msgspec

from trainer_tui.safety.errors import NoDaemon, Refused
from trainer_tui.tui import wire

TIMEOUT_S = 120.0  # an effect may need a checkpoint first; the reply comes after it
SILENCE_S = 40.0
BACKOFF_S = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)


class Declined(Refused):
    """The daemon's problem document (RFC 9457)."""

    def __init__(self, status: int, title: str, detail: str, hint: str, current: object) -> None:
        super().__init__(detail or title, hint)
        self.status = status
        self.title = title
        self.current = current


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `data` is JSON text."""

    id: str
    type: str
    data: bytes


class Backend(Protocol):
    """What the screen needs of a daemon. `Remote` is the real one."""

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> bytes:
        """The JSON answer as bytes. Raises NoDaemon, Declined."""
        ...

    async def send(self, method: str, path: str, body: object = None) -> bytes:
        """A change; returns after its effect. Raises NoDaemon, Declined."""
        ...

    def events(self, last_id: str | None) -> AsyncIterator[Event]:
        """The stream from after `last_id`. Raises NoDaemon when it ends or breaks."""
        ...

    async def close(self) -> None: ...


class Remote:
    """A client of the daemon at `socket`; the path may be longer than 107 bytes."""

    def __init__(self, socket: Path, actor: str = "screen") -> None:
        self._socket = socket
        self._actor = actor

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> bytes:
        wanted = {k: str(v) for k, v in (params or {}).items() if v is not None}
        return await self._ask("GET", f"{path}?{urlencode(wanted)}" if wanted else path)

    async def send(self, method: str, path: str, body: object = None) -> bytes:
        content = msgspec.json.encode(body if body is not None else {})
        return await self._ask(method, path, content)

    async def _ask(self, method: str, target: str, content: bytes = b"") -> bytes:
        headers = {"content-type": "application/json", "x-actor": self._actor} if content else {}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                wire.exchange(self._socket, method, target, headers, content) as answer,
            ):
                found = await answer.body()
        except TimeoutError:
            raise NoDaemon(f"no answer to {method} {target} in {TIMEOUT_S:.0f} s") from None
        except wire.Broken as problem:
            raise NoDaemon(f"the daemon does not answer: {problem}") from None
        if answer.status < 300:
            return found
        raise declined(answer.status, found)

    async def events(self, last_id: str | None) -> AsyncIterator[Event]:
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if last_id is not None:
            headers["last-event-id"] = last_id
        try:
            async with wire.exchange(self._socket, "GET", "/v1/events", headers) as answer:
                if answer.status >= 300:
                    raise declined(answer.status, await answer.body())
                async for item in wire.server_sent(_alive(answer.pieces())):
                    yield Event(item["id"], item["event"], item["data"].encode())
        except TimeoutError:
            raise NoDaemon(f"no sign of life for {SILENCE_S:.0f} s") from None
        except wire.Broken as problem:
            raise NoDaemon(str(problem)) from None
        raise NoDaemon("the daemon closed the connection")

    async def close(self) -> None:
        """Nothing is kept open between requests."""


async def _alive(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces. Raises TimeoutError when none came for `SILENCE_S`."""
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), SILENCE_S)
        except StopAsyncIteration:
            return


def declined(status: int, content: bytes) -> Declined:
    """The problem document as an error; a body that is none keeps its first line."""
    try:
        found = msgspec.json.decode(content)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        text = content.decode("utf-8", "replace").strip().splitlines()
        return Declined(status, f"HTTP {status}", text[0][:200] if text else "", "", None)
    return Declined(
        status,
        str(found.get("title") or f"HTTP {status}"),
        str(found.get("detail") or ""),
        str(found.get("hint") or ""),
        found.get("current"),
    )


def backoff_s(attempt: int) -> float:
    """How long to wait before try number `attempt` (from 1)."""
    return BACKOFF_S[min(attempt, len(BACKOFF_S)) - 1]


async def wait(attempt: int, hurry: asyncio.Event) -> None:
    """Wait the back-off, or until someone asks to try now."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(hurry.wait(), backoff_s(attempt))
    hurry.clear()
