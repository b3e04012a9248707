"""The characters drawn with: one set for terminals that show Unicode, one in ASCII.

Invariant: both sets have the same keys and each glyph is one cell wide in its set.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Glyphs:
    name: str
    braille: bool
    dot: str
    grip: str
    play: str
    pause: str
    cross: str
    check: str
    warn: str
    note: str
    up: str
    down: str
    bar: str
    bar_off: str
    bar_parts: str
    sparks: str
    corners: str  # top left, top right, bottom left, bottom right
    across: str
    upright: str
    dashed: str
    tick_y: str
    tick_x: str
    corner_axis: str
    insert: str
    star: str
    pin: str
    ellipsis: str
    middle: str
    meter_left: str
    meter_right: str
    train_key: str
    val_key: str
    saved: str


UNICODE = Glyphs(
    name="unicode",
    braille=True,
    dot="●",
    grip="⠿",
    play="▶",
    pause="‖",
    cross="✕",
    check="✓",
    warn="▲",
    note="·",
    up="↑",
    down="↓",
    bar="█",
    bar_off="░",
    bar_parts="▏▎▍▌▋▊▉█",
    sparks="▁▂▃▄▅▆▇█",
    corners="╭╮╰╯",
    across="─",
    upright="│",
    dashed="┊",
    tick_y="┤",
    tick_x="┬",
    corner_axis="└",
    insert="━",
    star="★",
    pin="◆",
    ellipsis="…",
    middle="·",
    meter_left="▕",
    meter_right="▏",
    train_key="─",
    val_key="┄",
    saved="┴",
)

ASCII = Glyphs(
    name="ascii",
    braille=False,
    dot="*",
    grip=":",
    play=">",
    pause="=",
    cross="x",
    check="+",
    warn="!",
    note=".",
    up="^",
    down="v",
    bar="#",
    bar_off=".",
    bar_parts="#",
    sparks="_.-=+*%#",
    corners="++++",
    across="-",
    upright="|",
    dashed=":",
    tick_y="+",
    tick_x="+",
    corner_axis="+",
    insert="=",
    star="*",
    pin="o",
    ellipsis="~",
    middle="|",
    meter_left="[",
    meter_right="]",
    train_key="-",
    val_key=".",
    saved="^",
)

_TO_ASCII = str.maketrans(
    {
        "…": "~", "·": "|", "–": "-", "−": "-", "±": "~", "°": " ", "→": ">", "←": "<",
        "↑": "^", "↓": "v", "⏎": "<", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+",
        "╯": "+", "┴": "^", "×": "x", "≥": ">", "≤": "<", "“": '"', "”": '"', "’": "'", "█": "#",
        "●": "*", "◆": "#", "○": "o", "✗": "x", "✕": "x", "✓": "+", "‖": "=", "▲": "!", "├": "+",
        "┤": "+", "└": "+", "┘": "+", "┬": "+", "┼": "+", "━": "=", "★": "*",
    }
)  # fmt: skip


def choose(environment: dict[str, str] | None = None, encoding: str = "utf-8") -> Glyphs:
    """The set this terminal can show; `TRAINER_TUI_ASCII=1` or `=0` decides by hand."""
    found = dict(os.environ) if environment is None else environment
    asked = found.get("TRAINER_TUI_ASCII", "")
    if asked:
        return UNICODE if asked == "0" else ASCII
    if "utf" not in encoding.lower() or found.get("TERM") in ("linux", "dumb", "vt100"):
        return ASCII
    return UNICODE


def plain(text: str, glyphs: Glyphs) -> str:
    """`text` in the characters of the set; for ASCII, what has no twin becomes `?`."""
    if glyphs.braille:
        return text
    return text.translate(_TO_ASCII).encode("ascii", "replace").decode("ascii")


def bar(fraction: float | None, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """A bar of `width` cells as (filled, rest), to an eighth of a cell."""
    share = min(1.0, max(0.0, fraction or 0.0))
    steps = len(glyphs.bar_parts)
    eighths = round(share * width * steps)
    full, part = divmod(eighths, steps)
    filled = glyphs.bar * full + (glyphs.bar_parts[part - 1] if part else "")
    return filled, glyphs.bar_off * (width - len(filled))


def sparkline(values: list[float], width: int, glyphs: Glyphs) -> str:
    """The last `width` values as one row; an even line when they do not differ."""
    if not values or width < 1:
        return ""
    values = resample(values, width)
    low, high = min(values), max(values)
    top = len(glyphs.sparks) - 1
    if high - low < 1e-12:
        return glyphs.sparks[top // 2] * len(values)
    return "".join(glyphs.sparks[round((value - low) / (high - low) * top)] for value in values)


def resample(values: list[float], width: int) -> list[float]:
    """Means of `width` equal shares of `values`; unchanged when they are fewer."""
    total = len(values)
    if total <= width:
        return values
    edges = [index * total // width for index in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
