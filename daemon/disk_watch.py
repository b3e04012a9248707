"""Room on the disk: watched, forecast, made when it is short; training waits when that fails.

Invariant: nothing committed is deleted here; the owners offer what they can spare
(`safety.disk`), and every deletion is an event. What was held back goes on by itself when there
is room again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.inbox import Inbox
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety import checkpoints, clock, disk, durable
from trainer_tui.safety.disk import Ballast, Forecast, Freed, Offer, Owner
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.spare import VersionsOwner

log = logging.getLogger("daemon")
LOOK_EVERY_S = 10.0
FORECAST_EVERY_S = 300.0
EVICT_TIMEOUT_S = 120.0
BALLAST_AFTER_S = 60.0
HISTORY = 288  # a day of them
WARN_AHEAD_S = 6 * 3600.0
STAGING_AGE_S = 3600.0
KIND = "disk"


class TrashOwner:
    """What a person removed from the queue."""

    name = "trash"

    def __init__(self, workspace: Workspace) -> None:
        self._trash = workspace.trash

    def offers(self) -> Iterator[Offer]:
        for path in sorted(self._trash.glob("job.*")):
            size = disk.exclusive_bytes(path)
            yield Offer(path.name, "removed by a person", size, partial(_delete, path))


class StagingOwner:
    """What a killed process left half written. Whoever stages somewhere sweeps it at its next
    start; on a short disk that may be too late. Nothing that is being written is so old."""

    name = "staging"

    def __init__(self, workspace: Workspace, now_s: Callable[[], float] = clock.now_s) -> None:
        here = workspace
        self._places = [here.state, here.queue, here.current_model, here.ledger, here.versions]
        self._places += [here.emergency, here.validation, here.cache]
        self._now_s = now_s

    def offers(self) -> Iterator[Offer]:
        for place in self._places:
            for path in sorted(place.glob(f"{durable.STAGING_PREFIX}*")):
                if self._now_s() - _touched_s(path) > STAGING_AGE_S:
                    size = disk.exclusive_bytes(path)
                    yield Offer(path.name, "left half written", size, partial(_delete, path))


def _touched_s(path: Path) -> float:
    """When anything in it was written last; wall time. What vanishes meanwhile is no left-over."""
    newest = 0.0
    for entry in (path, *path.rglob("*")):
        try:
            newest = max(newest, entry.lstat().st_mtime)
        except FileNotFoundError:
            return clock.now_s()
    return newest


class CacheOwner:
    """Tokens of files; they are made again when they are needed."""

    name = "data"

    def __init__(self, workspace: Workspace) -> None:
        self._cache = workspace.cache

    def offers(self) -> Iterator[Offer]:
        tokens = self._cache / "tokens"
        size = disk.exclusive_bytes(tokens) if tokens.is_dir() else 0
        if size:
            what = "the cache of tokens"
            yield Offer(what, "it is made again", size, lambda: _evict(self._cache))


def _delete(path: Path) -> None:
    if path.is_dir():
        durable.remove_tree(path)
    else:
        durable.remove_file(path)


def _evict(cache: Path) -> None:
    """In a process of its own: the cache's room imports what this one has no room for.

    Raises:
        OSError: it could not be done.
    """
    program = (
        "import sys; from pathlib import Path; from trainer_tui.data import token_cache;"
        "token_cache.evict(Path(sys.argv[1]), 0)"
    )
    command = [sys.executable, "-P", "-c", program, str(cache)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=EVICT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as problem:
        raise OSError(f"the cache was not emptied: {problem}") from None
    if done.returncode:
        raise OSError(f"the cache was not emptied: {done.stderr.decode('utf-8', 'replace')[-300:]}")


@dataclass(frozen=True, slots=True)
class Looked:
    forecast: Forecast
    freed: list[Freed]
    problem: str


class DiskWatch:
    """`run` is a task of the daemon; `preview` answers what would go. `in_use`: what is being
    restored just now."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        desk: Desk,
        inbox: Inbox,
        training: Training,
        teller: Teller,
        in_use: Collection[str],
    ) -> None:
        self._workspace, self._settings, self._in_use = workspace, settings, in_use
        self._desk, self._inbox = desk, inbox
        self._training, self._teller = training, teller
        self._ballast = Ballast(workspace.state / "ballast")
        self._history: deque[tuple[float, int]] = deque(maxlen=HISTORY)
        self._last_forecast_s = -FORECAST_EVERY_S
        self._warned = False
        self._born_s = clock.monotonic_s()

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            found = await asyncio.to_thread(self._look)
            looked = Looked(found, [], "")
            if not found.room_for_next_save:
                retention = self._settings.config.retention
                now = datetime.now().astimezone()
                await self._desk.ask(lambda queue: queue.expire(retention, now))  # noqa: B023
                looked = await asyncio.to_thread(self._make_room, found)
            self._tell(looked)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- in a thread -----------------------------------------------------------------------------

    def _look(self) -> Forecast:
        now_s = clock.monotonic_s()
        if now_s - self._last_forecast_s >= FORECAST_EVERY_S:
            self._last_forecast_s = now_s
            self._history.append((now_s, disk.free_bytes(self._workspace.root)))
        found = self.measure()
        # Not where it would itself take what has to stay free: it would come and go for ever.
        enough = (found.floor_bytes + found.next_save_bytes) * disk.RESUME_FACTOR
        roomy = found.free_bytes - disk.BALLAST_BYTES >= enough
        if now_s - self._born_s > BALLAST_AFTER_S and roomy and not self._ballast.there:
            self._ballast.put()
        return found

    def _make_room(self, found: Forecast) -> Looked:
        """The ballast goes first, so that deleting itself has room for its notes."""
        self._ballast.give_up()
        freed: list[Freed] = []
        problem = ""
        wanted = int((found.floor_bytes + found.next_save_bytes) * disk.RESUME_FACTOR)
        try:
            freed = disk.reclaim(wanted, self._owners(), self._free)
        except (OSError, TrainerTuiError) as trouble:
            problem = str(trouble)
        return Looked(self.measure(), freed, problem)

    def measure(self) -> Forecast:
        """Free, needed and the time left; reads sizes only."""
        total = shutil.disk_usage(self._workspace.root).total
        limits = self._settings.config.disk
        floor = disk.floor_bytes(total, limits.min_free_gb, limits.min_free_share)
        return disk.forecast(self._free(), floor, self._next_save_bytes(), list(self._history))

    def _free(self) -> int:
        return disk.free_bytes(self._workspace.root)

    def _next_save_bytes(self) -> int:
        folders = checkpoints.list_folders(self._workspace.current_model)
        if not folders:
            return 0
        return sum(entry.stat().st_size for entry in folders[0].iterdir() if entry.is_file())

    def _owners(self) -> list[Owner]:
        config = self._settings.config
        return [
            *self._owners_here(),
            VersionsOwner(self._workspace, config, in_use=self._in_use),
        ]

    def _owners_here(self) -> list[Owner]:
        """In the order in which things go: the cheapest to have again first."""
        here = self._workspace
        return [TrashOwner(here), StagingOwner(here), CacheOwner(here)]

    def preview(self) -> dict[str, Any]:
        """`GET /v1/disk`: the figures, and all that would go, in its order, with the bytes that
        come back then; in a thread. Deletes nothing."""
        found = self.measure()
        owners: Iterable[Owner] = self._owners_here()
        would_go = [
            {"owner": owner.name, "what": offer.what, "why": offer.why,
             "bytes": offer.exclusive_bytes}
            for owner in owners
            for offer in owner.offers()
        ]  # fmt: skip
        versions = VersionsOwner(self._workspace, self._settings.config, in_use=self._in_use)
        would_go += [
            {"owner": versions.name, "what": entry.what, "why": entry.why, "bytes": entry.bytes}
            for entry in versions.preview()
            if entry.bytes  # what frees nothing by then is not let go for space
        ]
        return {
            "free_bytes": found.free_bytes,
            "floor_bytes": found.floor_bytes,
            "next_save_bytes": found.next_save_bytes,
            "seconds_left": found.seconds_left,
            "holding": self._training.holds.get(KIND, ""),
            "would_go": would_go,
        }

    # --- on the loop -----------------------------------------------------------------------------

    def _tell(self, looked: Looked) -> None:
        found = looked.forecast
        for gone in looked.freed:
            text = f"{gone.what} went ({gone.why}): {gone.bytes / 1e6:.1f} MB"
            if not gone.bytes:
                text = f"{gone.what} went ({gone.why}); what that gave was written at once"
            self._teller.say("info", KIND, text, owner=gone.owner, bytes=gone.bytes)
        if looked.problem:
            self._teller.say("error", KIND, f"no room could be made: {looked.problem}")
        self._hold(found)
        short = found.seconds_left is not None and found.seconds_left < WARN_AHEAD_S
        if short and not self._warned and found.seconds_left is not None:
            hours = found.seconds_left / 3600
            self._teller.say("warning", KIND, f"the disk is full in {hours:.1f} hours at this rate")
        self._warned = short

    def _hold(self, found: Forecast) -> None:
        """Begin at the floor, end only well above it."""
        holding = KIND in self._training.holds
        needed = found.floor_bytes + found.next_save_bytes
        enough = needed * disk.RESUME_FACTOR if holding else needed
        if found.free_bytes >= enough:
            if holding:
                del self._training.holds[KIND]
                self._inbox.wake()
                self._teller.say("info", KIND, "there is room on the disk again: training goes on")
                self._training.poke()
            return
        why = f"the disk has {found.free_bytes / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed"
        if not holding:
            self._teller.say("error", KIND, f"training waits: {why}", hint="trainer-tui disk")
        self._training.holds[KIND] = why
        self._training.poke()
