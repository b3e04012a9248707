"""Routes: the second location of the versions."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from trainer_tui.daemon.api_training import Body
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.revision import check_revision


class BackupBody(Body):
    """`wait`: the reply comes when all is copied. `start_over`: the second disk was emptied on
    purpose."""

    wait: bool = True
    start_over: bool = False


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/v1/backup")
    backups = house.keeper.backups

    @routes.get("", summary="The second location: what is there, what is missing")
    async def status() -> Response:
        return json_response(await backups.status())

    @routes.post("", summary="Copy what the second location lacks, read it back")
    async def now(request: Request, body: BackupBody | None = None) -> Response:
        wish = body or BackupBody()
        check_revision(request, wish.revision, house)
        running = backups.start(start_over=wish.start_over)
        done: dict[str, Any] | None = None
        if wish.wait:
            done = (await asyncio.shield(running)).as_dict()
        return json_response({"done": done, **await backups.status()})

    @routes.post("/fetch/{number}", summary="Bring a lost or damaged version back from there")
    async def fetch(number: Annotated[int, Path(ge=0)]) -> Response:
        return json_response(await backups.fetch(number))

    return routes
