"""A change may name the state it was based on; when that has passed, it is refused."""

from __future__ import annotations

from fastapi import Request

from trainer_tui.daemon.house import House
from trainer_tui.daemon.problems import Malformed
from trainer_tui.safety.errors import Stale


def revision_of(request: Request, in_body: int | None) -> int | None:
    """The revision a request was based on, by `If-Match` or in its body; None: it does not say.

    Raises:
        Malformed: `If-Match` is no number.
    """
    header = request.headers.get("if-match")
    if in_body is not None or header is None or header.strip() == "*":
        return in_body
    text = header.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit():
        raise Malformed(f"If-Match: {header[:60]!r} is no revision", "it is a whole number")
    return int(text)


def check_revision(request: Request, in_body: int | None, house: House) -> None:
    """For a change that concerns no single job: nothing at all may have changed since.

    Raises:
        Stale: 409, `current` is the status document.
        Malformed.
    """
    given = revision_of(request, in_body)
    if given is not None and given != house.desk.revision:
        raise Stale(
            f"this was based on revision {given}; the state is at {house.desk.revision} now",
            "look again, then decide again",
            house.status(),
        )
