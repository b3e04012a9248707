"""Where the row hashes of trained files are kept: the daemon's half of `trained.py`.

Without numpy and tokenizers, because the daemon imports it: a completed job's hashes get a second
name, and that is all it does with them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trainer_tui.safety.workspace import Workspace

ROW_HASHES_NAME = "row_hashes"


def folder_of(workspace: Workspace) -> Path:
    return workspace.state / "data" / "trained"


def remember(workspace: Workspace, job: Path, file_sha256: str) -> None:
    """A job's directory is completed: its hashes outlive it. A failure is no harm."""
    folder = folder_of(workspace)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.link(job / ROW_HASHES_NAME, folder / file_sha256)
