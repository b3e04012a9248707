"""The daemon, over its Unix socket: requests, and one stream of news that mends itself.

Invariant: whatever happens to the daemon, `listen` goes on: it reads everything anew (or resumes
from the last event's id), and tries again after 0.2 s, doubling to 5 s.
Limits: one request at a time waits `TIMEOUT_S`; a silent stream counts as lost after 40 s (the
daemon sends a comment every 15 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
from httpx_sse import EventSource

from trainer_tui.safety.errors import NoDaemon, Refused

TIMEOUT_S = 120.0  # an effect may need a checkpoint first; the reply comes after it
CONNECT_S = 3.0
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
        self._client: httpx.AsyncClient | None = None
        self._folder_fd: int | None = None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            try:
                self._folder_fd = os.open(
                    self._socket.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            except OSError as problem:
                raise NoDaemon(f"{self._socket.parent}: {problem.strerror}") from None
            # The name stays good as long as the folder is open: see safety/unix_socket.py.
            name = f"/proc/self/fd/{self._folder_fd}/{self._socket.name}"
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=name),
                base_url="http://daemon",
                timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
                trust_env=False,
            )
        return self._client

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> bytes:
        wanted = {k: str(v) for k, v in (params or {}).items() if v is not None}
        return await self._ask("GET", path, params=wanted)

    async def send(self, method: str, path: str, body: object = None) -> bytes:
        content = msgspec.json.encode(body if body is not None else {})
        headers = {"Content-Type": "application/json", "X-Actor": self._actor}
        return await self._ask(method, path, content=content, headers=headers)

    async def _ask(self, method: str, path: str, **more: Any) -> bytes:
        try:
            reply = await self._open().request(method, path, **more)
        except httpx.TimeoutException:
            raise NoDaemon(f"no answer to {method} {path} in {TIMEOUT_S:.0f} s") from None
        except httpx.HTTPError as problem:
            raise NoDaemon(f"the daemon does not answer: {problem}") from None
        if reply.is_success:
            return reply.content
        raise declined(reply.status_code, reply.content)

    async def events(self, last_id: str | None) -> AsyncIterator[Event]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        try:
            async with self._open().stream(
                "GET", "/v1/events", headers=headers, timeout=timeout
            ) as reply:
                if not reply.is_success:
                    raise declined(reply.status_code, await reply.aread())
                async for item in EventSource(reply).aiter_sse():
                    yield Event(item.id, item.event, item.data.encode())
        except httpx.TimeoutException:
            raise NoDaemon(f"no sign of life for {SILENCE_S:.0f} s") from None
        except httpx.HTTPError as problem:
            raise NoDaemon(str(problem) or "the connection broke") from None
        raise NoDaemon("the daemon closed the connection")

    async def close(self) -> None:
        if self._client is not None:
            with contextlib.suppress(httpx.HTTPError):
                await self._client.aclose()
            self._client = None
        if self._folder_fd is not None:
            os.close(self._folder_fd)
            self._folder_fd = None


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
