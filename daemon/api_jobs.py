"""Routes: the queue. Every change that can be taken back is noted for undo."""

from __future__ import annotations

import asyncio
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from trainer_tui.daemon import again, undo
from trainer_tui.daemon.api_training import Body, who
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.revision import revision_of
from trainer_tui.queue.job import REPORT_NAME, Job, numbered
from trainer_tui.queue.store import Queue
from trainer_tui.safety.errors import DataProblem, NotFound

Priority = Literal["high", "normal", "low"]
JobId = Annotated[int, Path(ge=0, le=2**62)]
PAGE = 1000
PAGE_LIMIT = 100_000
WHOLE_JOBS = 1500  # a short listing is one answer with its length
REPORT_BYTES = 8 << 20


class AddBody(BaseModel):
    """`path`: absolute, on the daemon's machine; the file itself is left where it is. `accept`:
    queue it although its report blocks it."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=4096)
    priority: Priority = "normal"
    again: bool = False
    accept: bool = False


class ChangeBody(BaseModel):
    """At most one of `before`, `after` and `place`."""

    model_config = ConfigDict(extra="forbid")
    revision: int | None = None
    priority: Priority | None = None
    before: int | None = None
    after: int | None = None
    place: Literal["top", "bottom"] | None = None
    held: bool | None = None
    not_before: str | None = Field(None, max_length=64)


class RetryBody(Body):
    """`accept`: train it although its report blocks it."""

    accept: bool = False


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/v1/jobs")
    _add_reading(routes, house)
    _add_changing(routes, house)
    _add_wishes(routes, house)
    return routes


def _add_reading(routes: APIRouter, house: House) -> None:
    desk = house.desk

    @routes.get("", summary="Processing, waiting in training order, then done ones, newest first")
    async def listing(
        state: Literal["waiting", "processing", "completed", "failed"] | None = None,
        limit: int = Query(PAGE, ge=1, le=PAGE_LIMIT),
        offset: int = Query(0, ge=0, le=2**31),
    ) -> Response:
        count, pieces = await desk.listing(state, limit, offset)
        if count <= WHOLE_JOBS:
            whole = b"".join([piece async for piece in pieces])
            return Response(whole, media_type="application/json")
        return StreamingResponse(pieces, media_type="application/json")

    @routes.get("/{job_id}", summary="One job")
    async def one(job_id: JobId) -> Response:
        return json_response(await desk.view(job_id))

    @routes.get("/{job_id}/report", summary="What the check found in its rows")
    async def report(job_id: JobId) -> Response:
        data = await asyncio.to_thread(_read_report, house, job_id)
        return Response(data, media_type="application/json")


def _read_report(house: House, job_id: int) -> bytes:
    queue = house.desk.queue
    job = queue.get(job_id)
    file = queue.path(job) / REPORT_NAME
    try:
        with file.open("rb") as stream:
            return numbered(stream.read(REPORT_BYTES), job_id)
    except FileNotFoundError:
        raise NotFound(f"#{job_id} has no report", "it was not checked yet") from None


def _add_changing(routes: APIRouter, house: House) -> None:
    desk = house.desk

    @routes.post("", status_code=201, summary="Add a file of the daemon's machine")
    async def add(request: Request, body: AddBody) -> Response:
        path = FilePath(body.path)
        if not path.is_absolute() or "\0" in body.path:
            raise DataProblem(f"path: {body.path!r} is not absolute", "name it from / on")
        job = await house.inbox.add(path, body.priority, again=body.again, added_by=who(request))
        if body.accept and job.state == "failed":
            await desk.ask(lambda queue: queue.retry(job.id, accept=True), job.id)
        return json_response(await desk.view(job.id), 201)

    @routes.patch("/{job_id}", summary="Move it, hold it, give it another priority")
    async def change(job_id: JobId, request: Request, body: ChangeBody) -> Response:
        before = await desk.job(job_id)
        based_on = revision_of(request, body.revision)
        sent = body.model_fields_set

        def apply(queue: Queue) -> Job:
            return _apply_change(queue, job_id, body, sent, based_on)

        after = await desk.ask(apply, job_id)
        await _note_change(house, who(request), before, after)
        return json_response(await desk.view(job_id))

    @routes.delete("/{job_id}", summary="Move it to the trash")
    async def remove(job_id: JobId, request: Request) -> Response:
        based_on = revision_of(request, None)
        job = await desk.job(job_id)
        await desk.ask(lambda queue: queue.remove(job_id, if_revision=based_on), job_id)
        await house.undo.record(
            who(request),
            f"#{job_id} {job.name} removed",
            undo.RestoreJob(job_id),
            undo.RemoveJob(job_id),
        )
        house.teller.say("info", "job", f"#{job_id} {job.name} removed", job=job_id)
        return json_response({"removed": job_id})


def _apply_change(
    queue: Queue, job_id: int, body: ChangeBody, sent: set[str], based_on: int | None
) -> Job:
    """All of a PATCH on the queue's thread. The revision counts for the first change only."""
    job = queue.get(job_id)
    if body.priority is not None:
        job = queue.set_priority(job_id, body.priority, if_revision=based_on)
        based_on = None
    if sent & {"before", "after", "place"}:
        job = queue.move(
            job_id, before=body.before, after=body.after, place=body.place, if_revision=based_on
        )
        based_on = None
    if body.held is not None:
        wish = queue.hold if body.held else queue.unhold
        job = wish(job_id, if_revision=based_on)
        based_on = None
    if "not_before" in sent:
        job = queue.set_not_before(job_id, body.not_before, if_revision=based_on)
    return job


async def _note_change(house: House, by: str, before: Job, after: Job) -> None:
    """What it takes to take a change back."""
    if before.state != "waiting" or after.state != "waiting":
        return
    if (before.folder, before.position) != (after.folder, after.position):
        if before.folder != after.folder:
            text = f"#{after.id} {after.name}: priority {before.folder} -> {after.folder}"
        else:
            text = f"#{after.id} {after.name} moved"
        await house.undo.record(
            by,
            text,
            undo.PlaceJob(before.id, before.folder, before.position),
            undo.PlaceJob(after.id, after.folder, after.position),
        )
        house.teller.say("info", "job", text, job=after.id)
    if before.meta.held != after.meta.held:
        text = f"#{after.id} {after.name} {'held' if after.meta.held else 'released'}"
        await house.undo.record(
            by,
            text,
            undo.HoldJob(after.id, before.meta.held),
            undo.HoldJob(after.id, after.meta.held),
        )
        house.teller.say("info", "job", text, job=after.id)


def _add_wishes(routes: APIRouter, house: House) -> None:
    desk = house.desk

    async def wish(job_id: int, request: Request, body: Body | None, held: bool) -> Response:
        before = await desk.job(job_id)
        based_on = revision_of(request, body.revision if body else None)

        def apply(queue: Queue) -> Job:
            change = queue.hold if held else queue.unhold
            return change(job_id, if_revision=based_on)

        after = await desk.ask(apply, job_id)
        await _note_change(house, who(request), before, after)
        return json_response(await desk.view(job_id))

    @routes.post("/{job_id}/hold", summary="Leave it waiting")
    async def hold(job_id: JobId, request: Request, body: Body | None = None) -> Response:
        return await wish(job_id, request, body, True)

    @routes.post("/{job_id}/unhold", summary="Let it go on")
    async def unhold(job_id: JobId, request: Request, body: Body | None = None) -> Response:
        return await wish(job_id, request, body, False)

    @routes.post("/{job_id}/again", status_code=201, summary="Train a completed file once more")
    async def once_more(job_id: JobId, request: Request) -> Response:
        by = who(request)
        job = await desk.ask(lambda queue: again.train_again(queue, job_id, by))
        text = f"#{job_id} {job.name} is queued once more as #{job.id}"
        house.teller.say("info", "job", text, job=job.id)
        return json_response(await desk.view(job.id), 201)

    @routes.post("/{job_id}/retry", summary="Queue a failed job again")
    async def retry(job_id: JobId, request: Request, body: RetryBody | None = None) -> Response:
        wanted = body or RetryBody()
        based_on = revision_of(request, wanted.revision)
        await desk.ask(
            lambda queue: queue.retry(
                job_id, wanted.accept, if_revision=based_on, key=desk.key_now()
            ),
            job_id,
        )
        house.teller.say("info", "job", f"#{job_id} is queued again", job=job_id)
        return json_response(await desk.view(job_id))


def undo_act(act: undo.Act) -> Any:
    """How an act of the undo log is done on the queue; runs on the queue's thread."""

    def apply(queue: Queue) -> object:
        match act:
            case undo.PlaceJob(job_id=job_id, priority=priority, position=position):
                return queue.put_back(job_id, priority, position)
            case undo.HoldJob(job_id=job_id, held=held):
                return queue.hold(job_id) if held else queue.unhold(job_id)
            case undo.RemoveJob(job_id=job_id):
                return queue.remove(job_id)
            case undo.RestoreJob(job_id=job_id):
                return queue.restore_removed(job_id)
            case undo.SetIntent():
                raise AssertionError("an intent is not the queue's")

    return apply
