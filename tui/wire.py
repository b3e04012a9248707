"""One HTTP/1.1 exchange over a Unix socket, on asyncio's streams. One connection each.

In place of an HTTP library because the library's import was a fifth of the time to the first
frame. It speaks to our daemon alone (RFC 9112: length, chunks, or until the end).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from trainer_tui.safety import unix_socket

PIECE_BYTES = 1 << 16
HEAD_BYTES = 1 << 16


class Broken(Exception):
    """Nobody listens, the connection broke, or what came is not HTTP."""


class Answer:
    """A reply whose body is still to be read."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader):
        self.status = status
        self._headers = headers
        self._reader = reader

    async def body(self) -> bytes:
        """All of it. Raises Broken."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Broken when it ends too early."""
        try:
            if "chunked" in self._headers.get("transfer-encoding", "").lower():
                while size := int((await self._reader.readline()).split(b";")[0], 16):
                    yield await self._reader.readexactly(size)
                    await self._reader.readexactly(2)
            elif "content-length" in self._headers:
                left = int(self._headers["content-length"])
                while left:
                    piece = await self._reader.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise Broken("the reply ended too early")
                    left -= len(piece)
                    yield piece
            else:
                while piece := await self._reader.read(PIECE_BYTES):
                    yield piece
        except (OSError, EOFError, ValueError) as problem:
            raise Broken(str(problem) or "the connection broke") from None


@contextlib.asynccontextmanager
async def exchange(
    socket: Path,
    method: str,
    target: str,
    headers: Mapping[str, str],
    content: bytes = b"",
    connect_s: float = 3.0,
) -> AsyncIterator[Answer]:
    """Ask; the connection is closed when the block ends.

    Raises:
        Broken: see there.
    """
    try:
        async with asyncio.timeout(connect_s):
            with unix_socket.short_path(socket) as name:
                reader, writer = await asyncio.open_unix_connection(name, limit=HEAD_BYTES)
    except TimeoutError:
        raise Broken(f"no connection in {connect_s:.0f} s") from None
    except OSError as problem:
        raise Broken(problem.strerror or str(problem)) from None
    try:
        yield await _ask(reader, writer, method, target, headers, content)
    finally:
        writer.close()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    target: str,
    headers: Mapping[str, str],
    content: bytes,
) -> Answer:
    lines = [f"{method} {target} HTTP/1.1", "host: daemon", "connection: close"]
    lines += [f"{name}: {_header(value)}" for name, value in headers.items()]
    lines += [f"content-length: {len(content)}"] if content else []
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
    except (OSError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError) as problem:
        text = "it closed the connection" if isinstance(problem, EOFError) else str(problem)
        raise Broken(text) from None
    pairs = (line.partition(":") for line in rest if line)
    return Answer(status, {name.lower(): value.strip() for name, _, value in pairs}, reader)


def _header(value: str) -> str:
    """In ASCII, and never a second line."""
    clean = "".join(char if char.isprintable() else "?" for char in value)
    return clean.encode("ascii", "replace").decode()


async def server_sent(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, str]]:
    """Server-sent events as `{"id", "event", "data"}`; comments are left out."""
    rest, found = b"", {"id": "", "event": "", "data": ""}
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            name, _, value = line.partition(":")
            if not line:
                if found["data"]:
                    yield found
                found = {"id": found["id"], "event": "", "data": ""}
            elif name in found:
                value = value.removeprefix(" ")
                more = name == "data" and found["data"]
                found[name] = f"{found['data']}\n{value}" if more else value
