"""The second location for the daemon: copied to after every change of the versions, or when asked.

Invariant: one copying at a time, in a thread of its own; whoever asks while one runs joins it.
A client that goes away does not end it; the end of the daemon does, also while a copy is read
back, and the next run goes on in the middle of the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.safety import clock
from trainer_tui.safety.errors import Refused, TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.backup import Backup, BackupRun

HINT = "set versioning.second_location in config.toml to a folder on another disk"


class Backups:
    """Public methods run on the event loop. `fetched` is told the number of a version that came
    back."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        teller: Teller,
        fetched: Callable[[int], Awaitable[None]],
    ) -> None:
        self._workspace, self._settings, self._teller = workspace, settings, teller
        self._fetched = fetched
        self._running: asyncio.Task[BackupRun] | None = None
        self._again = False
        self._closing = False
        self._copying: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None

    def soon(self) -> None:
        """Versions changed: copy what is new. A change while a copying runs begins another."""
        if not self._settings.config.versioning.second_location or self._closing:
            return
        if self._running is None:
            self._begin(start_over=False)
        else:
            self._again = True

    def start(self, *, start_over: bool = False) -> asyncio.Task[BackupRun]:
        """The copying that runs, or a new one. `start_over`: see `Backup.run`.

        Raises:
            Refused: no second location is set, or one runs and is not a start-over.
        """
        self._location()
        if self._running is None:
            return self._begin(start_over)
        if start_over:
            raise Refused("a backup is running already", "wait for its end: trainer-tui backup")
        return self._running

    async def status(self) -> dict[str, Any]:
        """What is there and what is not, what is copied now, and how the last run ended."""
        location = self._settings.config.versioning.second_location
        state: dict[str, Any] = {"location": None}
        if location:
            backup = Backup(self._workspace, Path(location))
            state = (await asyncio.to_thread(backup.status)).as_dict()
        running = self._running is not None
        return {**state, "running": running, "copying": self._copying, "last": self._last}

    async def fetch(self, number: int) -> dict[str, Any]:
        """Bring a version back from the second location. Raises as `Backup.fetch`."""
        backup = Backup(self._workspace, self._location())
        version = await asyncio.to_thread(backup.fetch, number, lambda: self._closing)
        await self._fetched(number)
        return version.as_dict()

    async def close(self) -> None:
        """Copying, reading back and fetching stop within a few megabytes."""
        self._closing = True
        if self._running is not None:
            await asyncio.wait({self._running})

    def _location(self) -> Path:
        location = self._settings.config.versioning.second_location
        if not location:
            raise Refused("there is no second location", HINT)
        return Path(location)

    def _begin(self, start_over: bool) -> asyncio.Task[BackupRun]:
        backup = Backup(self._workspace, self._location())
        self._again = False
        task = asyncio.get_running_loop().create_task(self._run(backup, start_over))
        self._running = task
        task.add_done_callback(self._ended)
        return task

    async def _run(self, backup: Backup, start_over: bool) -> BackupRun:
        def run() -> BackupRun:
            return backup.run(self._progress, lambda: self._closing, start_over=start_over)

        done = await asyncio.to_thread(run)
        for problem in done.problems:
            self._teller.say("warning", "backup", problem)
        if done.copied:
            text = f"copied to {backup.place.path}: {', '.join(done.copied)}"
            self._teller.say("info", "backup", text)
        return done

    def _progress(self, name: str, copied_bytes: int, bytes_in_all: int) -> None:
        """In the copying thread: one assignment."""
        self._copying = {"version": name, "copied_bytes": copied_bytes, "bytes": bytes_in_all}

    def _ended(self, task: asyncio.Task[BackupRun]) -> None:
        self._running, self._copying = None, None
        if task.cancelled():
            return
        last: dict[str, Any] = {"at": clock.now_iso(), "problem": None}
        match task.exception():
            case None:
                last |= task.result().as_dict()
            case TrainerTuiError() | OSError() as problem:
                last["problem"] = str(problem)
                text = f"versions were not copied: {problem}"
                self._teller.say("error", "backup", text)
            case unexpected:
                raise unexpected
        self._last = last
        if self._again:
            self.soon()
