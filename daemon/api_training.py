"""Routes: status, and what a person asks of training."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trainer_tui.daemon import commands, undo
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.revision import check_revision
from trainer_tui.safety.text import printable

BY_HEADER = "x-actor"


class Body(BaseModel):
    """`revision`: the state the wish was based on; refused (409) when it is no longer so."""

    model_config = ConfigDict(extra="forbid")
    revision: int | None = None


class PauseBody(Body):
    release: bool = False


class StopBody(Body):
    now: bool = False


class RateBody(Body):
    """`factor`: 1 is `learning_rate` as it is set; each halving by a ladder halves it."""

    factor: float = Field(ge=1 / 64, le=4)


class SkipBody(Body):
    job: int | None = None


def who(request: Request) -> str:
    """Whoever the client says it is; only for showing."""
    return printable(request.headers.get(BY_HEADER, "api"), 60)


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    training = house.training

    def done() -> Response:
        return json_response({"status": house.status()})

    @routes.get("/ping", summary="Whether the daemon's loop turns")
    async def ping() -> Response:
        return json_response({"ok": True})

    @routes.get("/status", summary="The whole state")
    async def get_status() -> Response:
        return json_response(house.status())

    @routes.post("/training/pause", summary="Finish the step, commit, stand still")
    async def pause(request: Request, body: PauseBody | None = None) -> Response:
        wish = body or PauseBody()
        check_revision(request, wish.revision, house)
        before = training.intent
        await commands.pause(training, who(request), release=wish.release)
        if before.training in ("run", "stopped"):
            back = undo.SetIntent(before.training, "pause")
            again = undo.SetIntent("pause", before.training)
            await house.undo.record(who(request), "pause", back, again)
        return done()

    @routes.post("/training/resume", summary="Train again")
    async def resume(request: Request, body: Body | None = None) -> Response:
        check_revision(request, body.revision if body else None, house)
        before = training.intent
        await commands.resume(training, who(request))
        if before.training == "pause":
            back, again = undo.SetIntent("pause", "run"), undo.SetIntent("run", "pause")
            await house.undo.record(who(request), "resume", back, again)
        return done()

    @routes.post("/training/stop", summary="Stop after this file, or now with a checkpoint")
    async def stop(request: Request, body: StopBody | None = None) -> Response:
        wish = body or StopBody()
        check_revision(request, wish.revision, house)
        await commands.stop(training, who(request), now=wish.now)
        return done()

    @routes.post("/training/kill", summary="End the trainer at once; unsaved steps are lost")
    async def kill(request: Request, body: Body | None = None) -> Response:
        check_revision(request, body.revision if body else None, house)
        lost = await commands.kill(training, who(request))
        words = f"the trainer was killed (asked by {who(request)}): {lost} unsaved steps are lost"
        house.teller.say("warning", "training", words, lost_steps=lost)
        return json_response({"status": house.status(), "lost_steps": lost})

    @routes.post("/training/skip", summary="Set the file in hand aside, keep what it taught")
    async def skip(request: Request, body: SkipBody | None = None) -> Response:
        wish = body or SkipBody()
        check_revision(request, wish.revision, house)
        job_id = await commands.skip(training, house.desk, wish.job)
        return json_response({"status": house.status(), "job": await house.desk.view(job_id)})

    @routes.post("/training/rate", summary="Multiply the learning rate from now on")
    async def rate(request: Request, body: RateBody) -> Response:
        check_revision(request, body.revision, house)
        before = training.figures.lr_factor
        await commands.set_rate_factor(training, body.factor)
        words = f"the learning rate is multiplied by {body.factor:g} (asked by {who(request)})"
        house.teller.say("info", "training", f"{words}; it was by {before:g}")
        return done()

    @routes.post("/training/checkpoint", summary="Commit every step done by now")
    async def checkpoint(request: Request, body: Body | None = None) -> Response:
        check_revision(request, body.revision if body else None, house)
        await commands.checkpoint(training)
        return done()

    return routes


def as_values(body: BaseModel) -> dict[str, Any]:
    """Only what the client sent, without the revision."""
    return body.model_dump(exclude_unset=True, exclude={"revision"})
