"""uvicorn on sockets of ours, made patient with good clients and short with the others.

What uvicorn lacks is added in the protocol: a deadline for a whole request, a bound on
connections that drops the silent ones first, and a way to cut off a client that never reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import resource
import socket
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

import h11
import msgspec
import uvicorn
from starlette.exceptions import HTTPException
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer_tui.daemon import problems

REQUEST_DEADLINE_S = 10.0  # from the first byte, or from connecting, to the last byte of a request
READ_DEADLINE_S = 30.0  # a client that takes nothing for so long is cut off
KEEP_ALIVE_S = 60
HEADER_BYTES = 16 << 10
BODY_BYTES = 1 << 20
CONNECTIONS = 256
FDS_KEPT_FOR_WORK = 40  # never spent on clients: queue files, the database, children

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("api")


def connection_limit() -> int:
    """How many clients may be connected at once, given the limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4096) if hard != resource.RLIM_INFINITY else 4096
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(4, min(CONNECTIONS, soft - FDS_KEPT_FOR_WORK))


class GuardedProtocol(H11Protocol):
    """One connection. Put into `scope["state"]`: `local` (came by the Unix socket)."""

    limit = CONNECTIONS
    # Connections whose request is not complete, oldest first.
    waiting: ClassVar[dict[GuardedProtocol, float]] = {}

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        raw: socket.socket = transport.get_extra_info("socket")
        local = raw.family == socket.AF_UNIX
        self.app_state = {**self.app_state, "local": local}
        super().connection_made(transport)
        if local and not _peer_is_us(raw):
            transport.abort()
            return
        if len(self.connections) > self.limit:
            victim = next(iter(self.waiting), self)
            (victim.transport or transport).abort()
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._await_request()
        else:
            self._request_is_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(READ_DEADLINE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_write_deadline()

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_write_deadline()
        self._request_is_complete()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self.waiting[self] = time.monotonic()
            self._deadline = self.loop.call_later(REQUEST_DEADLINE_S, self.transport.abort)

    def _request_is_complete(self) -> None:
        self.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _peer_is_us(raw: socket.socket) -> bool:
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


class Guard:
    """In front of the app: bodies above the limit are refused, TCP needs the bearer token."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not scope["state"].get("local", False) and not self._allowed(headers):
            refusal = problems.response(
                401,
                "this address needs a token",
                "send the header Authorization: Bearer <[api] token>",
                www_authenticate="Bearer",
            )
            await refusal(scope, receive, send)
            return
        if _declared_bytes(headers) > BODY_BYTES:
            await _too_large()(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _allowed(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._token)
        return bool(self._token) and scheme.lower() == b"bearer" and right


def _declared_bytes(headers: dict[bytes, bytes]) -> int:
    try:
        return int(headers.get(b"content-length", b"0"))
    except ValueError:
        return 0


def _too_large() -> Response:
    return problems.response(
        413, f"a body may have {BODY_BYTES} bytes", "files are given by path", connection="close"
    )


def _bounded(receive: Receive) -> Receive:
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_BYTES:
            raise HTTPException(413, f"a body may have {BODY_BYTES} bytes", {"connection": "close"})
        return message

    return bounded


class Server(uvicorn.Server):
    """Without signal handlers: the daemon decides when to end. Runs in the caller's loop."""

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


def make_server(app: Any, token: str) -> Server:
    GuardedProtocol.limit = connection_limit()
    config = uvicorn.Config(
        Guard(app, token),
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=HEADER_BYTES,
        proxy_headers=False,
        backlog=256,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return Server(config)


def listen_tcp(address: str) -> socket.socket:
    """A listening TCP socket for `HOST:PORT`. Raises OSError, ValueError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, int(port)))
    except BaseException:
        server.close()
        raise
    server.listen(128)
    server.setblocking(False)
    return server


def json_response(document: object, status: int = 200, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(msgspec.json.encode(document), status, names, media_type="application/json")
