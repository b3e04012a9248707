"""Figures as people read them: counts, sizes, times, losses. Unknown is `–`, never a zero.

Every function takes plain values and gives short text without surrounding blanks.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

UNKNOWN = "–"
_SIZES = ("", "K", "M", "G", "T", "P")


def count(value: float | None) -> str:
    """18420 -> `18 420`."""
    return UNKNOWN if value is None else f"{int(value):,}".replace(",", " ")


def short_count(value: float | None) -> str:
    """41800 -> `41.8k`, 602000000 -> `602M`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size, unit = abs(value), ""
    for unit in ("", "k", "M", "G", "T"):
        if size < 999.5 or unit == "T":
            break
        size /= 1000
    sign = "-" if value < 0 else ""
    digits = 0 if not unit or size >= 99.95 else 1
    text = f"{size:.{digits}f}"
    return f"{sign}{text.removesuffix('.0')}{unit}"


def size(value_bytes: float | None) -> str:
    """Bytes in powers of 1024: `71.2G`."""
    if value_bytes is None:
        return UNKNOWN
    number, power = float(value_bytes), 0
    while number >= 1023.5 and power < len(_SIZES) - 1:
        number, power = number / 1024, power + 1
    unit = _SIZES[power]
    digits = 0 if not unit or number >= 99.95 else 1
    return f"{number:.{digits}f}".removesuffix(".0") + (unit or "B")


def used_of(used_bytes: float | None, total_bytes: float | None) -> str:
    """`71.2/80G`: both in the unit of the total."""
    if used_bytes is None or not total_bytes:
        return UNKNOWN
    power = min(len(_SIZES) - 1, max(0, int(math.log(total_bytes, 1024) + 1e-9)))
    used, total = used_bytes / 1024**power, total_bytes / 1024**power
    total_text = f"{total:.0f}" if total >= 10 else f"{total:.1f}".removesuffix(".0")
    return f"{used:.1f}/{total_text}{_SIZES[power] or 'B'}"


def percent(part: float | None, whole: float | None = 100.0) -> str:
    if part is None or not whole:
        return UNKNOWN
    return f"{100 * part / whole:.0f}%"


def duration(seconds: float | None) -> str:
    """Two units at most: `42s`, `3m20s`, `6h12m`, `9d4h`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole < 600 else f"{round(whole / 60)}m"
    if whole < 36000:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole < 172800:
        return f"{round(whole / 3600)}h"
    days, hours = whole // 86400, whole % 86400 // 3600
    return f"{days}d{hours}h" if days < 10 and hours else f"{days}d"


def span(low_s: float | None, high_s: float | None) -> str:
    """An estimate with its doubt: `6h12m±20m`."""
    if low_s is None or high_s is None:
        return UNKNOWN
    doubt = (high_s - low_s) / 2
    middle = duration((low_s + high_s) / 2)
    if doubt < 30 or doubt < 0.03 * high_s:
        return middle
    return f"{middle}±{coarse(doubt)}"


def coarse(seconds: float | None) -> str:
    """One unit: `4s`, `3m`, `2h`, `14d`."""
    if seconds is None:
        return UNKNOWN
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)}{name}"
    return f"{int(seconds // 86400)}d"


def age(seconds: float | None) -> str:
    """How long ago, coarser the older, so that a still screen stays still."""
    if seconds is None:
        return "never"
    if seconds < 2:
        return f"{seconds:.1f} s ago"
    if seconds < 10:
        return f"{seconds:.0f} s ago"
    if seconds < 60:
        return f"{int(seconds // 10) * 10} s ago"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    return f"{coarse(seconds)} ago"


def loss(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if math.isnan(value):
        return "NaN"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def signed(value: float | None) -> str:
    """`+0.0210` or `−0.0210`, with a real minus sign."""
    if value is None:
        return UNKNOWN
    return f"{value:+.4f}".replace("-", "−")


def rate(value: float | None) -> str:
    """A learning rate: `2.0e-4`."""
    if value is None:
        return UNKNOWN
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def parse_time(text: str | None) -> datetime | None:
    """An API timestamp as an aware datetime; None when absent or not one."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def date_of(text: str | None) -> date | None:
    """The day of an API timestamp in the reader's zone."""
    moment = parse_time(text)
    return None if moment is None else moment.astimezone().date()


def clock(text: str | None, today: date | None, short: bool = False) -> str:
    """When something happened, in the reader's zone, in at most 8 columns (`short`: without the
    seconds): `12:04:31`, on another day `Nov 12`, in another year `Nov 2025`.

    `today`: the reader's; None when that is not known or the day stands beside it.
    """
    moment = parse_time(text)
    if moment is None:
        return "--:--" if short else "--:--:--"
    here = moment.astimezone()
    if today is None or here.date() == today:
        return here.strftime("%H:%M" if short else "%H:%M:%S")
    return here.strftime("%b %d" if here.year == today.year else "%b %Y")


def day(text: str | None) -> str:
    moment = parse_time(text)
    return UNKNOWN if moment is None else moment.astimezone().strftime("%b %d %H:%M")
