"""Routes: versions, and the files of one for an inference machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from trainer_tui.daemon.after_restore import Asked
from trainer_tui.daemon.api_training import Body, who
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.keeper import GoneBack
from trainer_tui.daemon.revision import check_revision
from trainer_tui.versions import emergency

Number = Annotated[int, Path(ge=0)]


class NewVersion(BaseModel):
    model_config = ConfigDict(extra="forbid")
    description: str = Field("", max_length=500)
    revision: int | None = None


class Export(Body):
    """`path`: an absolute path, on the daemon's machine, that does not exist yet."""

    path: str = Field(min_length=1, max_length=4096)
    optimizer: bool = False


class Restore(Body):
    """`weights_only`: leave the optimizer out, a way round a damaged optimizer part. `requeue`:
    files trained since go back to the queue; else they stay done, and out of the model."""

    weights_only: bool = False
    requeue: bool = False


class Rollback(Restore):
    """`version`: the one that was shown as the target and agreed to; else the target of now."""

    version: int | None = Field(None, ge=0)


class Undone(Body):
    """`requeue`: as in `Restore`."""

    requeue: bool = False


async def _restored(house: House, done: GoneBack) -> Response:
    views = [await house.desk.view(job.id) for job in done.settled.requeued]
    document = {
        "restored": done.restored,
        "requeued": views,
        "not_requeued": done.settled.problems,
        "withdrawn": done.settled.withdrawn,
    }
    return json_response({**document, "status": house.status()})


async def _with_unsaved(
    house: House, document: dict[str, Any], lost_too: Callable[[Any, dict[int, str]], list[int]]
) -> Response:
    """Files that are trained and not saved yet are saved before a restore, and undone by it, too:
    they come first among `files_since`. `lost_too` asks the store which."""
    trained = house.training.trained
    waiting = {job.id: job for job in house.desk.processing if job.id in trained}
    unsaved = {job.id: job.file_sha256 for job in waiting.values()}
    lost = await house.keeper.ask(lambda store: lost_too(store, unsaved)) if unsaved else []
    first = [
        {"job_id": job_id, "name": waiting[job_id].name, "saved": False}
        for job_id in reversed(lost)
    ]
    return json_response({**document, "files_since": first + document["files_since"]})


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/v1/versions")
    _add_history(routes, house)
    _add_emergencies(routes, house)
    _add_reading(routes, house)
    _add_changing(routes, house)
    return routes


def _add_history(routes: APIRouter, house: House) -> None:
    keeper = house.keeper

    @routes.get("/lineage", summary="Lineages, versions and restores, as a graph and drawn")
    async def lineage() -> Response:
        return json_response(await keeper.ask(lambda store: store.lineage().as_dict()))

    @routes.get("/trash", summary="Deleted versions that can be brought back")
    async def trash() -> Response:
        found = await keeper.ask(lambda store: store.trashed())
        return json_response({"trashed": [entry.as_dict() for entry in found]})


def _add_emergencies(routes: APIRouter, house: House) -> None:
    keeper = house.keeper

    @routes.get("/emergencies", summary="What was there before each restore, newest first")
    async def emergencies() -> Response:
        found = await keeper.ask(lambda store: store.emergencies())
        return json_response({"emergencies": [entry.as_dict() for entry in found]})

    @routes.get("/emergencies/{number}", summary="One of them, and what going back to it undoes")
    async def emergency_of(number: Number) -> Response:
        found = await keeper.ask(lambda store: emergency.show(store.layout, number))

        def lost_too(store: Any, unsaved: dict[int, str]) -> list[int]:
            return emergency.lost_too(store.layout, number, unsaved)

        return await _with_unsaved(house, found, lost_too)

    @routes.post("/emergencies/{number}/restore", summary="Undo a restore")
    async def restore(number: Number, request: Request, body: Undone | None = None) -> Response:
        wish = body or Undone()
        check_revision(request, wish.revision, house)
        asked = Asked(wish.requeue, who(request))
        return await _restored(house, await keeper.restore_emergency(number, asked))


def _add_reading(routes: APIRouter, house: House) -> None:
    keeper = house.keeper

    @routes.get("", summary="Every version, newest first")
    async def listing() -> Response:
        return json_response(await keeper.ask(lambda store: store.as_dict()))

    @routes.get("/rollback", summary="Which version a rollback would restore, and what it undoes")
    async def rollback_target() -> Response:
        def look(store: Any) -> dict[str, Any]:
            target = store.rollback_target()
            return {"version": target.as_dict(), **store.undone_by(target.number)}

        found = await keeper.ask(look)
        number = found["version"]["number"]
        return await _with_unsaved(house, found, lambda store, jobs: store.lost_too(number, jobs))

    @routes.get("/diff/{first}/{second}", summary="What lies between two versions")
    async def diff(first: Number, second: Number) -> Response:
        found = await keeper.ask(lambda store: store.diff(first, second))
        return json_response(found.as_dict())

    @routes.get("/{number}", summary="One version, what its files did, what came since")
    async def one(number: Number) -> Response:
        shown = await keeper.ask(lambda store: store.show(number))
        return await _with_unsaved(house, shown, lambda store, jobs: store.lost_too(number, jobs))

    @routes.get("/{number}/files/{name:path}", summary="A file of a version; ranges, ETag = hash")
    async def file(number: Number, name: str, request: Request) -> Response:
        path, entry = await keeper.ask(lambda store: store.file(number, name))
        etag = f'"{entry.sha256}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"etag": etag})
        return FileResponse(
            path,
            media_type="application/octet-stream",
            headers={"etag": etag, "x-content-type-options": "nosniff"},
            filename=FilePath(name).name,
        )


def _add_changing(routes: APIRouter, house: House) -> None:
    keeper = house.keeper

    @routes.post("", status_code=201, summary="Make a version of the state now")
    async def create(request: Request, body: NewVersion | None = None) -> Response:
        wish = body or NewVersion()
        check_revision(request, wish.revision, house)
        return json_response(await keeper.create(wish.description), 201)

    @routes.post("/rollback", summary="Restore the version before the current state")
    async def rollback(request: Request, body: Rollback | None = None) -> Response:
        wish = body or Rollback()
        check_revision(request, wish.revision, house)
        asked = Asked(wish.requeue, who(request))
        done = await keeper.rollback(wish.version, asked, weights_only=wish.weights_only)
        return await _restored(house, done)

    @routes.post("/{number}/restore", summary="Commit a version again as the newest state")
    async def restore(number: Number, request: Request, body: Restore | None = None) -> Response:
        wish = body or Restore()
        check_revision(request, wish.revision, house)
        asked = Asked(wish.requeue, who(request))
        done = await keeper.restore(number, asked, weights_only=wish.weights_only)
        return await _restored(house, done)

    @routes.post("/{number}/verify", summary="Hash every file")
    async def verify(number: Number) -> Response:
        proof = await keeper.change(
            lambda store: store.verify(number), f"version {number} was verified"
        )
        return json_response({**proof.as_dict(), "state": "ok" if proof.ok else "corrupt"})

    @routes.post("/{number}/export", status_code=201, summary="Copy it to a new folder anywhere")
    async def export(number: Number, body: Export) -> Response:
        path, whole = FilePath(body.path), body.optimizer
        target = await keeper.export(number, path, with_optimizer=whole)
        return json_response({"number": number, "path": str(target), "optimizer": whole}, 201)

    @routes.post("/{number}/pin", summary="Protect it from retention")
    async def pin(number: Number) -> Response:
        version = await keeper.change(lambda store: store.pin(number), f"version {number} pinned")
        return json_response(version.as_dict())

    @routes.post("/{number}/unpin", summary="Let retention have it")
    async def unpin(number: Number) -> Response:
        version = await keeper.change(
            lambda store: store.unpin(number), f"version {number} unpinned"
        )
        return json_response(version.as_dict())

    @routes.post("/{number}/undelete", summary="Bring it back from the trash")
    async def undelete(number: Number) -> Response:
        version = await keeper.change(
            lambda store: store.undelete(number), f"version {number} was brought back"
        )
        return json_response(version.as_dict())

    @routes.delete("/{number}", summary="Move it to the trash")
    async def delete(number: Number, request: Request) -> Response:
        check_revision(request, None, house)
        days = house.settings.config.retention.trash_days
        trashed = await keeper.change(
            lambda store: store.delete(number, keep_days=days),
            f"version {number} was moved to the trash",
        )
        return json_response({"deleted": number, "trashed": trashed.as_dict()})
