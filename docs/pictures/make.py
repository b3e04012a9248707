"""Pictures of the screen for the documents, exported by the screen itself.

`python docs/pictures/make.py WORKSPACE` attaches to the daemon of that workspace (for instance
`trainer-tui demo` while it trains) and writes one SVG per size beside this file.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.glyphs import UNICODE
from trainer_tui.tui.picture import svg
from trainer_tui.tui.remote import Remote

HERE = Path(__file__).resolve().parent
SIZES = {"screen-80x24": (80, 24), "screen-120x40": (120, 40), "screen-160x48": (160, 48)}


async def shoot(socket: Path) -> None:
    app = TrainerApp(Remote(socket), glyphs=UNICODE)
    async with app.run_test(size=(80, 24)) as pilot:
        for _ in range(200):
            await pilot.pause(0.05)
            if app.view.curves.get("loss") and app.view.machine_past[20:]:
                break
        for name, size in SIZES.items():
            await pilot.resize_terminal(*size)
            await pilot.pause(1.5)
            (HERE / f"{name}.svg").write_text(svg(app), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(shoot(Workspace(Path(sys.argv[1])).socket))
