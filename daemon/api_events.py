"""Routes: the event stream, history, metrics, incidents, Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from trainer_tui.daemon import prometheus
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.problems import Malformed
from trainer_tui.safety.errors import DataProblem
from trainer_tui.safety.incidents import INCIDENT_NAME

KEEP_ALIVE_S = 15.0
SERIES = (
    "loss",
    "val_loss",
    "holdout_loss",
    "probe_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "supervised_tokens_per_s",
    "step_s",
    "gpu_utilisation",
    "gpu_memory",
    "temperature",
    "memory",
)
INCIDENTS_LISTED = 200
MAX_ID = 2**53


async def stream(bus: Bus, after: int | None) -> AsyncIterator[bytes]:
    """Server-sent events. A client that takes nothing is cut off by the protocol's deadline."""
    reader = bus.subscribe(after)
    try:
        yield b": trainer-tui\n\n"
        while not reader.closed:
            found = await reader.next(KEEP_ALIVE_S)
            yield b"".join(sent.as_stream() for sent in found) or b": still here\n\n"
    finally:
        bus.leave(reader)


def last_event_id(request: Request) -> int | None:
    """Raises Malformed."""
    header = request.headers.get("last-event-id")
    if header is None or not header.strip():
        return None
    text = header.strip()
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_ID:
        raise Malformed(f"Last-Event-ID: {text[:40]!r} is no event id", "it is a whole number")
    return int(text)


def router(house: House) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/events", summary="What happens, as server-sent events")
    async def events(request: Request) -> Response:
        body = stream(house.bus, last_event_id(request))
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    @routes.get("/v1/history", summary="What happened, newest first")
    async def history(
        limit: int = Query(100, ge=1, le=1000),
        before: int | None = Query(None, ge=0, le=MAX_ID),
        level: Literal["info", "warning", "error"] | None = None,
        text: str | None = Query(None, max_length=200),
    ) -> Response:
        found = await asyncio.wrap_future(house.history.events(limit, before, level, text))
        return json_response({"events": found})

    @routes.get("/v1/metrics", summary="Figures over the steps, in buckets")
    async def metrics(
        series: str = Query("loss,val_loss", max_length=400),
        from_step: int | None = Query(None, ge=0, le=MAX_ID),
        to_step: int | None = Query(None, ge=0, le=MAX_ID),
        points: int = Query(400, ge=1, le=5000),
    ) -> Response:
        names = list(dict.fromkeys(name for name in series.split(",") if name))
        unknown = [name for name in names if name not in SERIES]
        if unknown or not names:
            which = f"there is no series {unknown[0]!r}" if unknown else "no series was named"
            raise DataProblem(which, f"there are: {', '.join(SERIES)}")
        found = await asyncio.wrap_future(house.history.metrics(names, from_step, to_step, points))
        return json_response(found)

    @routes.get("/v1/incidents", summary="What went wrong, with the evidence and what was done")
    async def incidents() -> Response:
        found = await asyncio.to_thread(read_incidents, house.workspace.incidents)
        return json_response({"incidents": found})

    @routes.get("/v1/disk", summary="Room on the disk, and what would go when it is short")
    async def disk() -> Response:
        return json_response(await asyncio.to_thread(house.disk.preview))

    @routes.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def for_prometheus() -> Response:
        text = prometheus.exposition(house.status())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def read_incidents(folder: Path) -> list[dict[str, Any]]:
    """The newest ones, newest first; each is a folder with its document."""
    names = sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), reverse=True)
    found = []
    for name in names[:INCIDENTS_LISTED]:
        try:
            document = msgspec.json.decode((folder / name / INCIDENT_NAME).read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            continue  # one that is being written; the next reading has it
        files = sorted(entry.name for entry in (folder / name).iterdir())
        found.append({"id": name, **document, "files": files})
    return found
