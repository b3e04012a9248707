"""The filesystems that a workspace lies on, and which of them is short.

A workspace may spread over several disks, by mounts or symlinks. Each counts by itself: what goes
on one gives nothing back to another. Measuring comes in as an argument; the rest is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import disk
from trainer_tui.safety.config import Disk as Limits
from trainer_tui.safety.disk import Forecast
from trainer_tui.safety.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Measured:
    """The filesystem of a path. `device` (st_dev) is one for all of its mounts."""

    device: int
    free_bytes: int
    total_bytes: int


Measure = Callable[[Path], Measured]


def measure(path: Path) -> Measured:
    """What is missing is measured where it would be made."""
    while True:
        try:
            device = path.stat().st_dev
            return Measured(device, disk.free_bytes(path), disk.total_bytes(path))
        except FileNotFoundError:
            path = path.parent


def floor_of(limits: Limits) -> Callable[[int], int]:
    """What has to stay free, by a filesystem's size."""
    return lambda total: disk.floor_bytes(total, limits.min_free_gb, limits.min_free_share)


def beside(place: Path, measuring: Measure = measure) -> Callable[[Path], bool]:
    """Whether a path lies on the filesystem of `place`."""
    device = measuring(place).device
    return lambda path: measuring(path).device == device


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One filesystem with the workspace's `places` on it.

    `name`: the first of them, relative to the root; empty for the filesystem of the root itself.
    `awaited`: intake, queue or trainer write there, so they wait while it is short.
    """

    device: int
    name: str
    places: tuple[Path, ...]
    awaited: bool
    forecast: Forecast

    @property
    def words(self) -> str:
        return f"the disk of {self.name}" if self.name else "the disk"

    @property
    def needed_bytes(self) -> int:
        return self.forecast.floor_bytes + self.forecast.next_save_bytes

    @property
    def roomy_bytes(self) -> int:
        """Free space at which what waited goes on, and up to which room is made."""
        return int(self.needed_bytes * disk.RESUME_FACTOR)

    @property
    def short(self) -> bool:
        return not self.forecast.room_for_next_save

    @property
    def roomy(self) -> bool:
        return self.forecast.free_bytes >= self.roomy_bytes


def written_always(workspace: Workspace) -> list[Path]:
    """Where intake, queue and trainer write: without room there, none of them can go on."""
    here = workspace
    return [here.root, here.state, here.queue, here.validation, here.cache, here.current_model]


def places_of(workspace: Workspace) -> list[Path]:
    """Everything that may be a disk of its own and have something to spare; the root first."""
    here = workspace
    more = [here.trash, here.models, here.ledger, here.versions, here.emergency]
    return sorted({*written_always(here), *more})  # a folder comes before what is in it


def survey(
    workspace: Workspace,
    measuring: Measure,
    floor: Callable[[int], int],
    next_save_bytes: int,
    histories: Mapping[int, Sequence[tuple[float, int]]],
) -> list[Filesystem]:
    """Every filesystem that the workspace lies on, the root's first.

    Args:
        floor: what has to stay free, by the filesystem's size.
        next_save_bytes: counts where checkpoints are written.
        histories: by device: (monotonic seconds, free bytes), oldest first.
    """
    measured: dict[int, Measured] = {}
    places: dict[int, list[Path]] = {}
    for place in places_of(workspace):
        found = measuring(place)
        measured.setdefault(found.device, found)
        places.setdefault(found.device, []).append(place)
    filesystems = []
    for device, found in measured.items():
        here = places[device]
        saved = next_save_bytes if workspace.current_model in here else 0
        forecast = disk.forecast(
            found.free_bytes, floor(found.total_bytes), saved, histories.get(device, ())
        )
        name = "" if workspace.root in here else str(here[0].relative_to(workspace.root))
        awaited = any(place in here for place in written_always(workspace))
        filesystems.append(Filesystem(device, name, tuple(here), awaited, forecast))
    return filesystems


def waited_for(found: Sequence[Filesystem], before: Collection[int]) -> list[Filesystem]:
    """Those that training waits for: it begins at the floor and ends only well above it.

    Args:
        before: devices that it was waiting for already.
    """
    return [
        one
        for one in found
        if one.awaited and (not one.roomy if one.device in before else one.short)
    ]


def tightest(found: Sequence[Filesystem]) -> Filesystem:
    """The one with the least room beyond what it needs."""
    return min(found, key=lambda one: one.forecast.free_bytes - one.needed_bytes)


def soonest_s(found: Sequence[Filesystem]) -> float | None:
    """Seconds until the first of them is down to its floor; None: none is shrinking."""
    left = [one.forecast.seconds_left for one in found]
    return min((left_s for left_s in left if left_s is not None), default=None)
