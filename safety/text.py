"""Text that came from outside, made safe to show: no control character reaches a terminal, and
nothing of which terminals disagree how many columns it takes.

Joined emoji, variation selectors, skin tones and flags are such: one terminal draws a family in 2
columns, the next in 8. They are shown by their parts, each of a width that all agree on (Unicode
UAX #11, UTS #51). What is kept on disk keeps its name.
"""

from __future__ import annotations

import re
import unicodedata

_SAFE_RUN = re.compile(r"[^A-Za-z0-9._+=-]+")
_JOINING = {
    0x034F: None,  # combining grapheme joiner
    0x200C: None,  # zero width non-joiner and joiner
    0x200D: None,
    **dict.fromkeys(range(0x180B, 0x1810)),  # variation selectors
    **dict.fromkeys(range(0xFE00, 0xFE10)),
    **dict.fromkeys(range(0xE0100, 0xE01F0)),
    **dict.fromkeys(range(0x1F3FB, 0x1F400)),  # skin tones
    **{0x1F1E6 + i: chr(ord("A") + i) for i in range(26)},  # two of them are a flag
}


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control, bidi, invisible and unencodable characters shown as escapes and
    joined emoji as their parts, cut to `limit`."""
    if not text.isascii():
        text = text.translate(_JOINING)
    shown = "".join(char if _is_plain(char) else _escape(char) for char in text)
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def _is_plain(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def file_name_text(raw: bytes) -> str:
    """A file name as text: bytes that are not UTF-8 become `\\xNN`."""
    return printable(raw.decode("utf-8", "backslashreplace"))


def safe_name(raw: bytes, limit: int = 60) -> str:
    """A portable ASCII name that resembles `raw`; never empty, never starts with `.` or `-`."""
    text = _SAFE_RUN.sub("_", raw.decode("utf-8", "replace")).lstrip(".-_")
    stem = text[:limit].rstrip(".")
    return stem or "file"
