"""What a verb works with: the workspace in use and a client for its daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_tui.safety import workspace
from trainer_tui.safety.errors import TrainerTuiError, WorkspaceProblem
from trainer_tui.tui.client import Client

START_TIMEOUT_S = 30.0
LOCKED = 3  # exit code of the watchdog: another watchdog or daemon is there


@dataclass(slots=True)
class Context:
    """Set once by the root command; verbs read it."""

    explicit: Path | None = None
    _found: workspace.Workspace | None = field(default=None)

    @property
    def workspace(self) -> workspace.Workspace:
        """Raises WorkspaceProblem."""
        if self._found is None:
            self._found = workspace.find(self.explicit)
        return self._found

    @property
    def client(self) -> Client:
        return Client(self.workspace.socket)


context = Context()


def module_command(module: str, *arguments: str) -> list[str]:
    """argv that runs one of our modules; `-P` keeps the current directory off the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def run_module(module: str, *arguments: str) -> int:
    """Run one of our modules in the foreground and return its exit code."""
    return subprocess.run(module_command(module, *arguments), check=False).returncode


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def ensure_daemon(space: workspace.Workspace) -> bool:
    """Start a detached daemon when none answers; True when this call started it.

    Its parent is our watchdog, in a session of its own, so both survive the terminal.

    Raises:
        TrainerTuiError: it did not come up; the message carries its last words.
    """
    from trainer_tui.safety import logs

    client = Client(space.socket)
    if client.alive():
        return False
    _require_writable(space.root)
    space.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    output = space.logs / "daemon.out"
    logs.make_room(output)
    start = output.stat().st_size if output.exists() else 0
    watchdog = _start_watchdog(space, output)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if client.alive():
            return True
        code = watchdog.poll()
        if code == LOCKED:  # another one is there: about to answer, or about to end
            time.sleep(0.2)
            watchdog = _start_watchdog(space, output)
        elif code is not None:
            raise TrainerTuiError(*_last_words(output, start, code))
        time.sleep(0.05)
    raise TrainerTuiError(f"no daemon answered within {START_TIMEOUT_S:g} s", f"see {output}")


def _start_watchdog(space: workspace.Workspace, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as stream:
        return subprocess.Popen(
            module_command("trainer_tui.safety.watchdog", "--workspace", str(space.root)),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            cwd=space.root,
        )


def _last_words(output: Path, start: int, code: int) -> tuple[str, str]:
    with output.open("rb") as stream:
        stream.seek(start)
        words = stream.read().decode("utf-8", "replace").strip()
    lines = words.splitlines()
    return (f"the daemon exited with {code}", "\n  ".join(lines[-5:]) or f"see {output}")


def _require_writable(root: Path) -> None:
    if not os.access(root, os.W_OK):
        raise WorkspaceProblem(f"{root} cannot be written", "check its owner and mode")
