"""Somebody at a shell in one workspace, for the end-to-end tests: everything is real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon_harness import wait_for

from trainer_tui.safety import processes

COMMAND = str(Path(sys.executable).parent / "trainer-tui")


@dataclass
class Person:
    """Somebody at a shell in one workspace."""

    root: Path

    def types(
        self, *words: str, check: bool = True, limit_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `trainer-tui -w ROOT words…` as a process."""
        done = subprocess.run(
            [COMMAND, "-w", str(self.root), *words],
            capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def reads(self, *words: str) -> Any:
        return json.loads(self.types(*words, "--json").stdout)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.reads("status")
        return found

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {job["name"]: job for job in self.reads("queue", "list")["jobs"]}

    def drops(self, name: str, data: bytes, folder: str = "") -> Path:
        """Put a file into the inbox as scp would: under its final name, closed at the end."""
        path = self.root / "inbox" / folder / name
        path.write_bytes(data)
        return path

    def waits(self, what: Callable[[], Any], limit_s: float = 60) -> Any:
        return wait_for(what, limit_s)

    def trainer_pid(self) -> int:
        return int(self.waits(lambda: self.status()["training"]["trainer_pid"]))

    def daemon_pid(self) -> int:
        return int(json.loads((self.root / "state" / "daemon.json").read_text())["pid"])

    def ends_everything(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.daemon_pid(), signal.SIGTERM)
        tag = processes.workspace_tag(self.root)
        try:
            wait_for(lambda: not processes.tagged(tag), 30, "everything has ended")
        finally:
            for process in processes.tagged(tag):
                processes.send(process, signal.SIGKILL)
