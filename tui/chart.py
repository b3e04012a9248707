"""The loss as braille: plotext draws each series' dots, this module lays them over one another.

Pure: points and a size in, rows out. One build of plotext per series (about 2 ms at 60x8), and
only when the data changed: `draw` is called by a panel that remembers what it drew.

Invariant: no more points than two a column are handed to plotext.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.view import Point

BRAILLE = 0x2800
DASHED = 0b01000111  # the left column of dots: a line seen through a comb
LABEL_CELLS = 4


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: its name is the role it is drawn in. Later series lie on top."""

    role: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step: an upright dashed line with a label, a sign at the foot
    of the curves, or a tick on the axis."""

    step: float
    label: str
    role: str
    place: Literal["upright", "foot", "axis"] = "upright"


@dataclass(frozen=True, slots=True)
class Axes:
    """The window in data space; `log` is about y."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool = False

    def column(self, x: float, width: int) -> int:
        span = self.x_high - self.x_low
        return round((x - self.x_low) / span * (width - 1)) if span > 0 else width - 1

    def row(self, y: float, height: int) -> int:
        low, high, value = self.y_low, self.y_high, y
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(y, 1e-12))
        return round((high - value) / (high - low) * (height - 1)) if high > low else height // 2


def smoothed(points: Sequence[Point], keep: float) -> tuple[tuple[float, float], ...]:
    """Exponential moving average of the means, bias corrected; gaps and NaN are left out."""
    out: list[tuple[float, float]] = []
    average, weight = 0.0, 0.0
    for point in points:
        if point.mean is None or not math.isfinite(point.mean):
            continue
        average = keep * average + (1 - keep) * point.mean
        weight = keep * weight + (1 - keep)
        out.append((point.step, average / weight))
    return tuple(out)


def bucketed(
    points: Sequence[tuple[float, float]], low: float, high: float, columns: int
) -> tuple[tuple[float, float], ...]:
    """Means per column of the window; at most `columns` points."""
    inside = [point for point in points if low <= point[0] <= high]
    if len(inside) <= columns:
        return tuple(inside)
    width = (high - low) / columns or 1.0
    sums: dict[int, tuple[float, float, int]] = {}
    for x, y in inside:
        index = min(columns - 1, int((x - low) / width))
        sx, sy, n = sums.get(index, (0.0, 0.0, 0))
        sums[index] = (sx + x, sy + y, n + 1)
    return tuple((sx / n, sy / n) for _, (sx, sy, n) in sorted(sums.items()))


def envelope(
    points: Sequence[Point], low: float, high: float, columns: int
) -> tuple[tuple[float, float], ...]:
    """Lowest and highest value per column, in turn, so that a line through them fills the band."""
    width = (high - low) / columns or 1.0
    ends: dict[int, tuple[float, float]] = {}
    for point in points:
        if not low <= point.step <= high or point.mean is None or not math.isfinite(point.mean):
            continue
        index = min(columns - 1, int((point.step - low) / width))
        least = point.mean if point.min is None else point.min
        most = point.mean if point.max is None else point.max
        old = ends.get(index, (least, most))
        ends[index] = (min(old[0], least), max(old[1], most))
    out: list[tuple[float, float]] = []
    for index, (least, most) in sorted(ends.items()):
        x = low + (index + 0.5) * width
        out += [(x, least), (x, most)] if index % 2 else [(x, most), (x, least)]
    return tuple(out)


def snapped(low: float, high: float, dots: int) -> float:
    """`high`, or a little more: it moves by whole dots, so that a chart that grows by a step a
    second stays as it is for most of them."""
    if high <= low:
        return high
    unit = 2.0 ** math.floor(math.log2((high - low) / dots))
    return low + math.ceil((high - low) / unit) * unit


def axes_for(series: Sequence[Series], x_low: float, x_high: float, log: bool) -> Axes:
    """Round limits around what is inside the window; outliers of more than 20 % are cut off."""
    values = sorted(y for item in series for x, y in item.points if x_low <= x <= x_high)
    values = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not values:
        return Axes(x_low, x_high, 0.1 if log else 0.0, 1.0, log)
    low, high = values[0], values[-1]
    body = values[: max(1, int(len(values) * 0.985))][-1]
    if high - low > 5 * max(body - low, 1e-9):
        high = body + 0.2 * (body - low)
    if high - low < 1e-6 * max(1.0, abs(high)):
        low, high = low - 0.05 * max(abs(low), 0.1), high + 0.05 * max(abs(high), 0.1)
    pad = 0.04 * (high - low)
    floor = low - pad if low - pad > 0 or low < 0 else low * 0.9 if log else 0.0
    if log:
        return Axes(x_low, x_high, max(floor, 1e-9), high + pad, log)
    unit = 2.0 ** math.floor(math.log2(high + pad - floor) - 5)  # the axis stands still in noise
    floor, top = math.floor(floor / unit) * unit, math.ceil((high + pad) / unit) * unit
    return Axes(x_low, x_high, floor, top, log)


def y_labels(axes: Axes, height: int) -> dict[int, str]:
    """Labels by row, every second row or so, with as few digits as tell them apart."""
    out: dict[int, str] = {}
    step = 2 if height <= 12 else 3 if height <= 24 else 4
    span = axes.y_high - axes.y_low
    digits = 1 if span >= 0.8 else 2 if span >= 0.06 else 3
    for row in range(0, height, step):
        share = row / max(1, height - 1)
        if axes.log:
            low, high = math.log(axes.y_low), math.log(axes.y_high)
            value = math.exp(high - share * (high - low))
        else:
            value = axes.y_high - share * span
        text = f"{value:.{digits}f}"
        out[row] = text if len(text) <= LABEL_CELLS + digits - 1 else f"{value:.0f}"
    return out


def braille(series: Series, axes: Axes, width: int, height: int) -> list[str]:
    """One series as `height` lines of braille (blank where nothing is), drawn by plotext."""
    dots: list[tuple[int, int]] = []
    for x, y in series.points:
        if axes.x_low <= x <= axes.x_high:
            row = axes.row(min(max(y, axes.y_low), axes.y_high), 4 * height)
            dots.append((axes.column(x, 2 * width), 4 * height - 1 - row))
    return list(_drawn(tuple(dict.fromkeys(dots)), width, height))


@lru_cache(maxsize=16)
def _drawn(dots: tuple[tuple[int, int], ...], width: int, height: int) -> tuple[str, ...]:
    """A line through dots (from the lower left), two a cell across and four a cell up."""
    if not dots:
        return (" " * width,) * height
    from plotext import figure

    xs, ys = [x for x, _ in dots], [y for _, y in dots]
    if len(dots) == 1:
        xs, ys = xs * 2, ys * 2
    figure.clear.data()
    figure.clear.settings()
    figure.plot_size(width, height)
    figure.axes(False)
    for name, last in (("x", 2 * width - 1), ("y", 4 * height - 1)):
        figure.ruler(name).ticks([])
        figure.ruler(name).lim(0, last)
    figure.draw(figure.signal(xs, ys, marker="braille").lines(True))
    lines = figure.build().string(colorless=True).split("\n")[:height]
    blank = [" " * width] * (height - len(lines))
    return tuple([line.ljust(width)[:width] for line in lines] + blank)


def dotted(series: Series, axes: Axes, width: int, height: int, sign: str) -> list[str]:
    """The same without braille: one sign a column."""
    grid = [[" "] * width for _ in range(height)]
    for x, y in series.points:
        if axes.x_low <= x <= axes.x_high:
            row = min(height - 1, max(0, axes.row(min(max(y, axes.y_low), axes.y_high), height)))
            grid[row][min(width - 1, max(0, axes.column(x, width)))] = sign
    return ["".join(row) for row in grid]


def overlay(
    layers: Sequence[tuple[list[str], str]], width: int, height: int
) -> list[list[tuple[str, str]]]:
    """Layers of equal size as cells of (character, role): dots are united, the top role wins.
    The envelope (`raw`) gives way where anything lies on it; validation is dashed."""
    cells = [[(" ", "")] * width for _ in range(height)]
    for lines, role in layers:
        for y, line in enumerate(lines):
            for x, char in enumerate(line):
                code = ord(char)
                if BRAILLE <= code < BRAILLE + 256:
                    code = BRAILLE | (code & DASHED) if role in ("val", "compare") else code
                    under = ord(cells[y][x][0])
                    if BRAILLE <= under < BRAILLE + 256 and cells[y][x][1] != "raw":
                        code |= under
                    char = chr(code)
                if char not in (" ", chr(BRAILLE)):
                    cells[y][x] = (char, role)
    return cells


def plot(
    series: Sequence[Series],
    axes: Axes,
    marks: Sequence[Mark],
    width: int,
    height: int,
    glyphs: Glyphs,
    cursor: float | None = None,
) -> list[Row]:
    """The whole chart with its y axis and its foot, `height` rows of `width` cells."""
    labels = y_labels(axes, height - 1)
    left = max((len(text) for text in labels.values()), default=3)
    body_width, body_height = max(4, width - left - 1), max(1, height - 1)
    layers: list[tuple[list[str], str]] = []
    for index, item in enumerate(series):
        if glyphs.braille:
            lines = braille(item, axes, body_width, body_height)
        else:
            lines = dotted(item, axes, body_width, body_height, ".*o+"[index % 4])
        layers.append((lines, item.role))
    cells = overlay(layers, body_width, body_height)
    _draw_marks(cells, marks, axes, glyphs)
    if cursor is not None:
        column = axes.column(cursor, body_width)
        for row in cells:
            if 0 <= column < body_width and row[column][0] == " ":
                row[column] = (glyphs.upright, "focus")
    rows: list[Row] = []
    for y, row in enumerate(cells):
        line = Line().cell(labels.get(y, ""), left, "dim", right=True)
        line.add(glyphs.tick_y if y in labels else glyphs.upright, "faint")
        for text, role in _runs(row):
            line.add(text, role)
        rows.append(line.row(width))
    ticks = [mark for mark in marks if mark.place == "axis"]
    rows.append(_foot(axes, ticks, left, body_width, glyphs).row(width))
    return rows


def _draw_marks(
    cells: list[list[tuple[str, str]]], marks: Sequence[Mark], axes: Axes, glyphs: Glyphs
) -> None:
    height, width = len(cells), len(cells[0])
    taken: list[tuple[int, int]] = []
    for mark in marks:
        column = axes.column(mark.step, width)
        if not 0 <= column < width or mark.place == "axis":
            continue
        if mark.place == "foot":
            cells[height - 1][column] = (mark.label, mark.role)
            continue
        for row in cells:
            if row[column][0] == " ":
                row[column] = (glyphs.dashed, mark.role)
        if not mark.label:
            continue
        start = min(column + 1, width - len(mark.label))
        if any(a < start + len(mark.label) + 1 and start < b for a, b in taken):
            continue
        taken.append((start, start + len(mark.label) + 1))
        line = next((i for i in range(height) if all(
            cells[i][x][0] in (" ", glyphs.dashed) for x in range(start, start + len(mark.label))
        )), None)  # fmt: skip
        if line is not None:
            for offset, char in enumerate(mark.label):
                cells[line][start + offset] = (char, mark.role)


def _foot(axes: Axes, ticks: Sequence[Mark], left: int, width: int, glyphs: Glyphs) -> Line:
    """The x axis with its ticks, and the steps at its ends and between."""
    cells = [(glyphs.across, "faint")] * width
    for mark in ticks:
        if 0 <= (column := axes.column(mark.step, width)) < width:
            cells[column] = (mark.label, mark.role)
    span = axes.x_high - axes.x_low
    count = max(2, min(7, width // 16))
    last = ""
    for index in range(count):
        text = _step_text(axes.x_low + span * index / (count - 1), span)
        if text == last:  # a few steps only: no label twice
            continue
        last = text
        column = round((width - 1) * index / (count - 1))
        before = 0 if index == 0 else len(text) - 1 if index == count - 1 else len(text) // 2
        for offset, char in enumerate(text, max(0, column - before)):
            if offset < width:
                cells[offset] = (char, "dim")
    line = Line().add(" " * left).add(glyphs.corner_axis, "faint")
    for text, role in _runs(cells):
        line.add(text, role)
    return line


def _step_text(step: float, span: float) -> str:
    if abs(step) < 10_000:
        return f"{step:.0f}"
    digits = 0 if span >= 8_000 else 1 if span >= 800 else 2
    return f"{step / 1000:.{digits}f}k" if abs(step) < 1e6 else f"{step / 1e6:.2f}M"


def _runs(cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one role joined; a blank takes the role of the cell before it."""
    runs: list[tuple[str, str]] = []
    for char, role in cells:
        if runs and (role == runs[-1][1] or char == " "):
            runs[-1] = (runs[-1][0] + char, runs[-1][1])
        else:
            runs.append((char, role))
    return runs
