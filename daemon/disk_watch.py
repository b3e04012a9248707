"""Room on the disks: watched, forecast, made where it is short; training waits when that fails.

Invariant: nothing committed is deleted here; the owners offer what they can spare
(`safety.disk`), of the filesystem that is short and no other, and every deletion is an event.
Where deleting has no effect it ends until there was room again. What was held back goes on by
itself when there is room.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.disk_owners import Here, owners_here
from trainer_tui.daemon.inbox import Inbox
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety import checkpoints, clock, disk, filesystems
from trainer_tui.safety.disk import Ballast, Freed, Owner, Tally
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.filesystems import Filesystem, Measure
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.spare import VersionsOwner

LOOK_EVERY_S = 10.0
FORECAST_EVERY_S = 300.0
BALLAST_AFTER_S = 60.0
HISTORY = 288  # a day of them
WARN_AHEAD_S = 6 * 3600.0
KIND = "disk"


@dataclass(frozen=True, slots=True)
class Looked:
    """`found`: every filesystem as it is now; `problems` and `given_up` are sentences."""

    found: list[Filesystem]
    freed: list[Freed]
    problems: list[str]
    given_up: list[str]


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
        measuring: Measure = filesystems.measure,
    ) -> None:
        self._workspace, self._settings, self._in_use = workspace, settings, in_use
        self._desk, self._inbox = desk, inbox
        self._training, self._teller = training, teller
        self._measuring = measuring
        self._ballast = Ballast(workspace.state / "ballast")
        # All by device.
        self._histories: dict[int, deque[tuple[float, int]]] = {}
        self._tallies: defaultdict[int, Tally] = defaultdict(Tally)
        self._held: set[int] = set()
        self._warned: set[int] = set()
        self._short_aside: set[int] = set()
        self._last_forecast_s = -FORECAST_EVERY_S
        self._born_s = clock.monotonic_s()

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            looked = Looked(await asyncio.to_thread(self.look), [], [], [])
            if short := [one for one in looked.found if one.short]:
                if any(self._workspace.queue in one.places for one in short):
                    retention = self._settings.config.retention
                    now = datetime.now().astimezone()
                    await self._desk.ask(lambda queue: queue.expire(retention, now))  # noqa: B023
                looked = await asyncio.to_thread(self.make_room, short)
            self._tell(looked)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- in a thread -----------------------------------------------------------------------------

    def look(self) -> list[Filesystem]:
        """Measure, and remember what the next look needs."""
        found = self.measure()
        now_s = clock.monotonic_s()
        if now_s - self._last_forecast_s >= FORECAST_EVERY_S:
            self._last_forecast_s = now_s
            for one in found:
                history = self._histories.setdefault(one.device, deque(maxlen=HISTORY))
                history.append((now_s, one.forecast.free_bytes))
        for one in found:
            if one.roomy:
                self._tallies.pop(one.device, None)
            if self._workspace.state in one.places:
                self._keep_ballast(one)
        return found

    def _keep_ballast(self, home: Filesystem) -> None:
        # Not where it would itself take what has to stay free: it would come and go for ever.
        roomy = home.forecast.free_bytes - disk.BALLAST_BYTES >= home.roomy_bytes
        grown = clock.monotonic_s() - self._born_s > BALLAST_AFTER_S
        if grown and roomy and not self._ballast.there:
            self._ballast.put()

    def make_room(self, short: Sequence[Filesystem]) -> Looked:
        """On each of them, by what lies on it."""
        freed: list[Freed] = []
        problems: list[str] = []
        given_up: list[str] = []
        for one in short:
            tally = self._tallies[one.device]
            spent = tally.spent
            try:
                for gone in self._make_room_on(one, tally):
                    freed.append(gone)  # one by one: they went, though the next may fail
            except (OSError, TrainerTuiError) as trouble:
                problems.append(f"no room could be made on {one.words}: {trouble}")
            if tally.spent and not spent:
                text = f"{tally.without_effect} deletions gave nothing back to {one.words}"
                given_up.append(f"{text}: no more is deleted there until it has room")
        return Looked(self.measure(), freed, problems, given_up)

    def _make_room_on(self, one: Filesystem, tally: Tally) -> Iterator[Freed]:
        if self._workspace.state in one.places:
            self._ballast.give_up()  # first, so that deleting itself has room for its notes
        place = one.places[0]
        owners = self._owners(filesystems.beside(place, self._measuring))
        return disk.reclaim(
            one.roomy_bytes, owners, lambda: self._measuring(place).free_bytes, tally
        )

    def measure(self) -> list[Filesystem]:
        """Free, needed and the time left, of every filesystem; reads sizes only."""
        limits = self._settings.config.disk

        def floor(total_bytes: int) -> int:
            return disk.floor_bytes(total_bytes, limits.min_free_gb, limits.min_free_share)

        return filesystems.survey(
            self._workspace, self._measuring, floor, self._next_save_bytes(), self._histories
        )

    def _next_save_bytes(self) -> int:
        folders = checkpoints.list_folders(self._workspace.current_model)
        if not folders:
            return 0
        try:
            return sum(entry.stat().st_size for entry in folders[0].iterdir() if entry.is_file())
        except FileNotFoundError:  # retention let go of it just now; a newer one is there
            return self._next_save_bytes()

    def _owners(self, here: Here) -> list[Owner]:
        return [*owners_here(self._workspace, here), self._versions_owner(here)]

    def _versions_owner(self, here: Here) -> VersionsOwner:
        config = self._settings.config
        return VersionsOwner(self._workspace, config, in_use=self._in_use, here=here)

    def preview(self) -> dict[str, Any]:
        """`GET /v1/disk`: the figures, and all that would go, in its order, with the bytes that
        come back then; in a thread. Deletes nothing."""
        found = self.measure()
        tight = filesystems.tightest(found)
        return {
            "place": tight.name,
            "free_bytes": tight.forecast.free_bytes,
            "floor_bytes": tight.forecast.floor_bytes,
            "next_save_bytes": tight.forecast.next_save_bytes,
            "seconds_left": filesystems.soonest_s(found),
            "holding": self._training.holds.get(KIND, ""),
            "filesystems": [
                {"place": one.name, "free_bytes": one.forecast.free_bytes,
                 "floor_bytes": one.forecast.floor_bytes,
                 "next_save_bytes": one.forecast.next_save_bytes,
                 "seconds_left": one.forecast.seconds_left}
                for one in found
            ],
            "would_go": [entry for one in found for entry in self._would_go(one)],
        }  # fmt: skip

    def _would_go(self, one: Filesystem) -> list[dict[str, Any]]:
        here = filesystems.beside(one.places[0], self._measuring)
        would_go = [
            (owner.name, offer.what, offer.why, offer.exclusive_bytes)
            for owner in owners_here(self._workspace, here)
            for offer in owner.offers()
        ]
        versions = self._versions_owner(here)
        would_go += [
            (versions.name, entry.what, entry.why, entry.bytes)
            for entry in versions.preview()
            if entry.bytes  # what frees nothing by then is not let go for space
        ]
        return [
            {"owner": owner, "what": what, "why": why, "bytes": size, "place": one.name}
            for owner, what, why, size in would_go
        ]

    # --- on the loop -----------------------------------------------------------------------------

    def _tell(self, looked: Looked) -> None:
        for gone in looked.freed:
            text = f"{gone.what} went ({gone.why}): {gone.bytes / 1e6:.1f} MB"
            if not gone.bytes:
                text = f"{gone.what} went ({gone.why}); what that gave was written at once"
            self._teller.say("info", KIND, text, owner=gone.owner, bytes=gone.bytes)
        for problem in looked.problems:
            self._teller.say("error", KIND, problem)
        for text in looked.given_up:
            self._teller.say("error", KIND, text)
        self._hold(looked.found)
        self._warn(looked.found)

    def _warn(self, found: Sequence[Filesystem]) -> None:
        """Once about each that fills, and each that is short though training goes on."""
        filling: set[int] = set()
        for one in found:
            left_s = one.forecast.seconds_left
            if left_s is not None and left_s < WARN_AHEAD_S:
                filling.add(one.device)
                if one.device not in self._warned:
                    text = f"{one.words} is full in {left_s / 3600:.1f} hours at this rate"
                    self._teller.say("warning", KIND, text)
        self._warned = filling
        aside = {one.device: one for one in found if one.short and not one.awaited}
        for device in aside.keys() - self._short_aside:
            self._teller.say("warning", KIND, _figures(aside[device]), hint="trainer-tui disk")
        self._short_aside = set(aside)

    def _hold(self, found: Sequence[Filesystem]) -> None:
        holding = KIND in self._training.holds
        waiting = filesystems.waited_for(found, self._held)
        self._held = {one.device for one in waiting}
        if not waiting:
            if holding:
                del self._training.holds[KIND]
                self._inbox.wake()
                self._teller.say("info", KIND, "there is room on the disk again: training goes on")
                self._training.poke()
            return
        why = "; ".join(_figures(one) for one in waiting)
        if not holding:
            self._teller.say("error", KIND, f"training waits: {why}", hint="trainer-tui disk")
        self._training.holds[KIND] = why
        self._training.poke()


def _figures(one: Filesystem) -> str:
    free, needed = one.forecast.free_bytes / 1e9, one.needed_bytes / 1e9
    return f"{one.words} has {free:.1f} GB free, {needed:.1f} GB are needed"
