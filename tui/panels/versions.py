"""Numbered milestones: what each weighs in validation loss, which one is live, which is pinned."""

from __future__ import annotations

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.glyphs import Glyphs
from trainer_tui.tui.ink import Line, Row, cut, over
from trainer_tui.tui.panels.base import ListPanel
from trainer_tui.tui.view import Panel, Version, View


def age_of(version: Version, view: View) -> str:
    """As of the last whole minute, so that a still screen stays still."""
    made = figures.parse_time(version.created_at)
    now = figures.parse_time(view.status.now if view.status else None)
    if made is None or now is None:
        return figures.UNKNOWN
    seconds = (now - made).total_seconds()
    return "now" if seconds < 60 else figures.coarse(seconds)


def mark(version: Version, glyphs: Glyphs, live: int | None) -> tuple[str, str]:
    if version.state != "ok":
        return glyphs.cross, "bad"
    if version.number == live:
        return glyphs.play, "good"
    return (glyphs.pin, "mark") if version.pinned else (" ", "")


def version_row(version: Version, view: View, width: int, glyphs: Glyphs, best: int | None) -> Row:
    live = max((item.number for item in view.versions if item.live), default=None)
    sign, role = mark(version, glyphs, live)
    line = Line().add(" ").add(sign, role).add(f" v{version.number:03d} ", "strong")
    line.cell(figures.loss(version.loss), 7, "val", right=True)
    line.add(f" {glyphs.star}" if version.number == best else "  ", "warn")
    line.cell(age_of(version, view), 4, "dim", right=True).add("  ")
    if width >= 64:
        line.cell(f"step {figures.count(version.global_step)}", 14, "dim").add(" ")
    words = version.description or ("automatic" if version.automatic else version.name)
    trouble = "" if version.state == "ok" else f"{version.state.upper()}: "
    line.add(trouble, "bad").add(printable(words or ""), "dim" if version.automatic else "")
    if version.weights_only:
        line.add(" (weights only)", "dim")
    return cut(tuple(line.spans), width)


class VersionsPanel(ListPanel):
    number = 3
    title_text = "Versions"
    sticky = False

    def __init__(self) -> None:
        super().__init__(id=Panel.VERSIONS.value)

    @property
    def versions(self) -> list[Version]:
        words = self._filter.lower().split()
        return [
            version
            for version in self.screen_app.view.versions
            if all(
                w in f"v{version.number:03d} {version.description} {version.name}".lower()
                for w in words
            )
        ]

    def keys(self) -> list[object]:
        return [version.number for version in self.versions]

    @property
    def version(self) -> Version | None:
        key = self.selected
        return self.screen_app.view.version(key) if isinstance(key, int) else None

    def corner(self, width: int) -> Line | None:
        if width < 44 or self.screen_app.read_only or not self.screen_app.view.versions:
            return None
        return Line().add("R", "key").add(" roll back  ", "dim").add("D", "key").add(" diff", "dim")

    def inner(self, width: int, height: int) -> list[Row]:
        view, versions = self.screen_app.view, self.versions
        if not versions:
            return [
                Line().row(width),
                Line().add("  No version yet.", "strong").row(width),
                Line().add("  C makes one of the newest checkpoint.", "dim").row(width),
            ]
        self._settle(self.keys())
        rows: list[Row] = []
        for index in self.window(len(versions), height):
            row = version_row(versions[index], view, width, self.glyphs, view.best_version)
            rows.append(over(row, "select") if index == self._index else row)
        return rows

    def copy_text(self) -> str:
        version = self.version
        return version.name or f"v{version.number:03d}" if version else ""
