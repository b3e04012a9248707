"""The daemon's API for the command line: standard library only, so that a verb starts fast.

Errors of the API (RFC 9457 problem documents) become `Refused` with message and hint; no daemon
becomes `NoDaemon`.
"""

from __future__ import annotations

import getpass
import http.client
import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

from trainer_tui.safety import unix_socket
from trainer_tui.safety.errors import NoDaemon, Refused, Unanswered

TIMEOUT_S = 10.0
EFFECT_TIMEOUT_S = 600.0  # a reply comes after the effect: a stop waits for its step and commit


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("trainer-tui", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = unix_socket.connect(self._path, self._timeout_s)


def _actor() -> str:
    """Who asks, for the undo log and other viewers. A header is ASCII, so the name is quoted."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in a container
        name = str(os.getuid())
    return f"cli:{urllib.parse.quote(name)}"


class Client:
    """One call, one connection."""

    def __init__(self, socket: Path, actor: str = "") -> None:
        self._socket = socket
        self._actor = actor or _actor()

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path, None, TIMEOUT_S)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._call("POST", path, body or {}, EFFECT_TIMEOUT_S)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("PATCH", path, body, EFFECT_TIMEOUT_S)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path, None, EFFECT_TIMEOUT_S)

    def alive(self) -> bool:
        """Whether a daemon answers now."""
        try:
            self.get("/v1/status")
        except NoDaemon:
            return False
        return True

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> dict[str, Any]:
        connection = _UnixConnection(self._socket, timeout_s)
        headers = {"X-Actor": self._actor}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, headers
            )
            response = connection.getresponse()
            status, raw = response.status, response.read()
        except TimeoutError:
            raise Unanswered(
                f"the daemon did not answer within {timeout_s:g} s",
                "trainer-tui doctor; its log: trainer-tui logs",
            ) from None
        except (FileNotFoundError, ConnectionRefusedError) as problem:
            raise NoDaemon(
                f"no daemon answers on {self._socket} ({problem})",
                "start one with: trainer-tui --daemon (or just: trainer-tui)",
            ) from None
        except (OSError, http.client.HTTPException) as problem:
            why = problem or type(problem).__name__
            raise Unanswered(
                f"no answer from the daemon on {self._socket} ({why})",
                "its log: trainer-tui logs",
            ) from None
        finally:
            connection.close()
        return _read_reply(status, raw)


def _read_reply(status: int, raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw) if raw else {}
    except ValueError:
        raise Refused(f"the daemon answered {status} with something that is not JSON") from None
    if status >= 400:
        detail = document.get("detail") or document.get("title") or f"error {status}"
        raise Refused(str(detail), str(document.get("hint") or ""))
    return document if isinstance(document, dict) else {"items": document}
