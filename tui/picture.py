"""The screen as an SVG file, as it stands: for reports, for the README."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.terminal_theme import TerminalTheme

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

_ANSI = [
    (26, 30, 39), (236, 122, 120), (135, 201, 149), (229, 181, 103),
    (121, 184, 242), (167, 139, 208), (110, 190, 200), (205, 211, 222),
]  # fmt: skip
NIGHT = TerminalTheme((22, 26, 34), (213, 218, 227), _ANSI, _ANSI)
DAY = TerminalTheme((253, 253, 251), (38, 43, 52), _ANSI, _ANSI)


def svg(app: TrainerApp) -> str:
    """What the terminal shows now, as SVG text."""
    width, height = app.size
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", record=True, legacy_windows=False, safe_box=False,
    )  # fmt: skip
    console.print(
        app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    )
    title = "trainer-tui"
    return console.export_svg(title=title, theme=DAY if app.palette == "light" else NIGHT)


def save_picture(app: TrainerApp, folder: Path) -> Path:
    """Write `trainer-tui-<n>.svg` into `folder`, never over an older one."""
    number = 1
    while (path := folder / f"trainer-tui-{number}.svg").exists():
        number += 1
    path.write_text(svg(app), encoding="utf-8")
    return path
