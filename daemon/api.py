"""The HTTP API, version 1: one app for the screen, the command line, curl and Prometheus.

Routes only translate; what they do is done by the parts in `House`. A reply comes after the
effect. Shapes: docs/api.md.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from trainer_tui.daemon import (
    api_backup,
    api_config,
    api_events,
    api_jobs,
    api_training,
    api_versions,
    problems,
    status,
)
from trainer_tui.daemon.house import House
from trainer_tui.queue.job import Job

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "current": {},
    },
}


def make_app(house: House) -> FastAPI:
    answers = {
        code: {"description": text, "content": {"application/problem+json": {"schema": _PROBLEM}}}
        for code, text in (
            (400, "not JSON"),
            (401, "no token (TCP only)"),
            (404, "there is no such thing"),
            (409, "stale, or refused in this state"),
            (413, "the body is too large"),
            (422, "a wrong value"),
        )
    }
    app = FastAPI(
        title="trainer-tui",
        version=status.version(),
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=answers,  # type: ignore[arg-type]
    )

    async def show(current: object) -> object:
        return await house.desk.view(current.id) if isinstance(current, Job) else current

    problems.install(app, show)
    app.include_router(api_training.router(house))
    app.include_router(api_jobs.router(house))
    app.include_router(api_versions.router(house))
    app.include_router(api_backup.router(house))
    app.include_router(api_config.router(house))
    app.include_router(api_events.router(house))
    return app
