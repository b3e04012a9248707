"""What `trainer-tui doctor --json` says, one finding a line."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`level`: ok | note (works, could be better) | fail (does not work)."""

    level: str = "note"
    subject: str = ""
    text: str = ""
    hint: str = ""
