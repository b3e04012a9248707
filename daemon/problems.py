"""Errors as RFC 9457 problem documents: `{type, title, status, detail, hint, current?}`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from trainer_tui.safety.errors import (
    ConfigProblem,
    Corrupt,
    DataProblem,
    NotFound,
    Refused,
    Stale,
    TrainerTuiError,
    WorkspaceProblem,
)

log = logging.getLogger("api")


class Malformed(TrainerTuiError):
    """The request cannot be read (400)."""


def problem(status: int, detail: str, hint: str = "", current: object = None) -> dict[str, Any]:
    """The document. `type` is a stable word for programs, `detail` a sentence for people."""
    title = HTTPStatus(status).phrase
    document = {
        "type": f"urn:trainer-tui:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "hint": hint,
    }
    if current is not None:
        document["current"] = current
    return document


def response(
    status: int, detail: str, hint: str = "", current: object = None, **headers: str
) -> Response:
    return Response(
        msgspec.json.encode(problem(status, detail, hint, current)),
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        media_type="application/problem+json",
    )


def sentence(error: Mapping[str, Any]) -> str:
    """What is wrong with a request, for somebody who typed a command and knows no schema."""
    _, *place = error["loc"]  # body, path or query comes first
    name = ".".join(str(part) for part in place) or "the body"
    limits = error.get("ctx") or {}
    match error["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"{name} is not known here"
        case "string_too_long":
            return f"{name} may have at most {limits['max_length']} characters"
        case "string_too_short":
            return f"{name} must not be empty"
        case "less_than_equal":
            return f"{name} may be at most {limits['le']}"
        case "greater_than_equal":
            return f"{name} must be at least {limits['ge']}"
        case "int_parsing_size":
            return f"{name} is too large a number"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{name} must be a whole number"
        case "bool_parsing" | "bool_type":
            return f"{name} must be true or false"
        case "string_type":
            return f"{name} must be a text"
        case "model_attributes_type" | "dict_type":
            return f"{name} must be a JSON object"
    words = str(error["msg"]).removeprefix("Value error, ")
    return f"{name}: {words.replace('Input should be', 'it must be')}"


def status_of(error: TrainerTuiError) -> int:
    match error:
        case Malformed():
            return 400
        case NotFound():
            return 404
        case Stale() | Refused() | Corrupt() | WorkspaceProblem():
            return 409
        case ConfigProblem() | DataProblem():
            return 422
        case _:
            return 409


def install(app: FastAPI, show: Callable[[object], Awaitable[object]]) -> None:
    """Every error that leaves a route becomes a problem document. `show(current)` turns what a
    stale request collided with into what the API shows of it."""

    @app.exception_handler(TrainerTuiError)
    async def refused(request: Request, error: TrainerTuiError) -> Response:
        current = await show(error.current) if isinstance(error, Stale) else None
        return response(status_of(error), error.message, error.hint, current)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return response(400, "the body is not JSON", str(first.get("ctx", {}).get("error", "")))
        return response(422, sentence(first))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = {
            name.lower().replace("-", "_"): value for name, value in (error.headers or {}).items()
        }
        if error.status_code == 404 and error.detail == "Not Found":
            return response(
                404, f"there is no {request.url.path}", "see /v1/openapi.json", **headers
            )
        return response(error.status_code, str(error.detail), **headers)

    @app.exception_handler(OSError)
    async def disk(request: Request, error: OSError) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "trainer-tui disk shows what would go, and why"
            return response(507, "the disk is full: nothing was changed", hint)
        reason = error.strerror or str(error)
        return response(500, f"the disk failed at this: {reason}", "trainer-tui logs")

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response(500, "the daemon failed at this; its log says more", "trainer-tui logs")
