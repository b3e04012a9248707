"""The way into the screen. Textual is imported only by those who ask for `TrainerApp` or `run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

__all__ = ["TrainerApp", "run"]


def run(workspace_root: Path, *, read_only: bool = False, socket: Path) -> int:
    """Attach to the daemon at `socket` until the person leaves; prints the exit line.

    Returns the exit code: 0 left, 1 the screen failed (with a traceback on the terminal).
    """
    from trainer_tui.tui.attach import attach

    return attach(workspace_root, read_only=read_only, socket=socket)


def __getattr__(name: str) -> Any:
    if name == "TrainerApp":
        from trainer_tui.tui.control import TrainerApp

        return TrainerApp
    raise AttributeError(name)
