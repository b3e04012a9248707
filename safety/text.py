"""Text that came from outside, made safe to show: no control character reaches a terminal."""

from __future__ import annotations

import re
import unicodedata

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_SAFE_RUN = re.compile(r"[^A-Za-z0-9._+=-]+")


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control, bidi and unencodable characters shown as escapes, cut to `limit`."""
    shown = "".join(char if _is_plain(char) else _escape(char) for char in text)
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def _is_plain(char: str) -> bool:
    return char not in _BIDI and unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def file_name_text(raw: bytes) -> str:
    """A file name as text: bytes that are not UTF-8 become `\\xNN`."""
    return printable(raw.decode("utf-8", "backslashreplace"))


def safe_name(raw: bytes, limit: int = 60) -> str:
    """A portable ASCII name that resembles `raw`; never empty, never starts with `.` or `-`."""
    text = _SAFE_RUN.sub("_", raw.decode("utf-8", "replace")).lstrip(".-_")
    stem = text[:limit].rstrip(".")
    return stem or "file"
