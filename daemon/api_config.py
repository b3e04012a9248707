"""Routes: the settings and their pending edits, approvals, undo and redo."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from trainer_tui.daemon.api_training import Body, who
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import json_response
from trainer_tui.daemon.revision import check_revision
from trainer_tui.daemon.settings import HIDDEN
from trainer_tui.safety import config


class Edit(BaseModel):
    """`values`: full keys (`learning_rate`, `retention.checkpoints`) to their new values.
    `approve`: guarded keys to let take their edited value; true: every one that waits."""

    model_config = ConfigDict(extra="forbid")
    values: dict[str, Any] = {}
    approve: list[str] | bool = []
    revision: int | None = None


class UndoBody(Body):
    """`force`: also when the act was another viewer's."""

    force: bool = False


def _document(house: House) -> dict[str, Any]:
    settings = house.settings
    shown = settings.config.model_dump(mode="json")
    if shown["api"]["token"]:
        shown["api"]["token"] = HIDDEN
    if shown["notify"]["webhook"]:
        shown["notify"]["webhook"] = _without_path(shown["notify"]["webhook"])
    return {
        "file": str(settings.file),
        "values": shown,
        "approved": settings.approvals.values,
        "pending": [pending.as_dict() for pending in settings.pending()],
        "problem": settings.problem,
        "approvals": settings.approvals.log,
    }


def _without_path(url: str) -> str:
    """A webhook's path is a secret; its host says enough."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}/…"


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    settings = house.settings

    @routes.get("/config", summary="Settings, and the edits that wait")
    async def get_config() -> Response:
        return json_response(_document(house))

    @routes.patch("/config", summary="Edit config.toml, comments kept; approve guarded edits")
    async def edit(request: Request, body: Edit) -> Response:
        check_revision(request, body.revision, house)
        said = []
        if body.values:
            await asyncio.to_thread(settings.set_values, body.values)
            said += [_when_text(house, key) for key in body.values]
        for key in _to_approve(house, body.approve):
            approval = await asyncio.to_thread(settings.approve, key, who(request))
            said.append(f"{key}: {approval.old!r} -> {approval.new!r}, from the next file on")
        for text in said:
            house.teller.say("info", "config", f"{text} ({who(request)})")
        house.training.settings_changed()
        await house.desk.settings_changed()
        return json_response({**_document(house), "text": "; ".join(said)})

    @routes.get("/undo", summary="What would be undone and redone next")
    async def next_acts() -> Response:
        return json_response(house.undo.as_dict())

    @routes.post("/undo", summary="Take the last act back")
    async def undo(request: Request, body: UndoBody | None = None) -> Response:
        wish = body or UndoBody()
        check_revision(request, wish.revision, house)
        said = await house.undo.undo(who(request), force=wish.force)
        house.teller.say("info", "undo", f"{said} ({who(request)})")
        return json_response({"text": said, "status": house.status()})

    @routes.post("/redo", summary="Do it again")
    async def redo(request: Request, body: UndoBody | None = None) -> Response:
        wish = body or UndoBody()
        check_revision(request, wish.revision, house)
        said = await house.undo.redo(who(request), force=wish.force)
        house.teller.say("info", "undo", f"{said} ({who(request)})")
        return json_response({"text": said, "status": house.status()})

    return routes


def _to_approve(house: House, wish: list[str] | bool) -> list[str]:
    if isinstance(wish, list):
        return wish
    waiting = [pending.key for pending in house.settings.pending()]
    return [key for key in waiting if key in config.APPROVAL_KEYS] if wish else []


def _when_text(house: House, key: str) -> str:
    waiting = {pending.key: pending for pending in house.settings.pending()}
    match waiting[key].when if key in waiting else "live":
        case "needs_approval":
            return f"{key} is edited and waits: trainer-tui config approve {key}"
        case "next_file":
            return f"{key} is edited and acts from the next file on"
        case "new_lineage":
            return f"{key} is edited and acts where a new lineage begins without optimizer"
        case "restart":
            return f"{key} is edited and acts when the daemon starts again"
        case "live":
            return f"{key} is edited and acts now"
