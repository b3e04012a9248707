"""Room on the disk: how much there must be, how long it lasts, and the order in which it is made.

Deciding is pure; deleting is done by the owners (`data` its cache, `queue` its history,
`versions` everything committed), each of which only offers what it can spare. Free space is
measured again after every deletion, because a hard link that goes frees nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer_tui.safety import clock, durable

GB = 1_000_000_000
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
BALLAST_BYTES = 32 << 20
WITHOUT_EFFECT_LIMIT = 8  # deletions in a row that freed nothing, then no more is deleted
TRY_AGAIN_S = 600.0
RESUME_FACTOR = 1.1  # training goes on when there is this much more than the floor


def floor_bytes(total_bytes: int, min_free_gb: float, min_free_share: float) -> int:
    """What has to stay free: `min_free_gb`, or its share on a small disk, whichever is less."""
    return int(min(min_free_gb * GB, min_free_share * total_bytes))


@dataclass(frozen=True, slots=True)
class Forecast:
    """`seconds_left`: until the floor is reached at the present rate; None: it is not shrinking."""

    free_bytes: int
    floor_bytes: int
    next_save_bytes: int
    seconds_left: float | None

    @property
    def room_for_next_save(self) -> bool:
        return self.free_bytes - self.next_save_bytes >= self.floor_bytes


def forecast(
    free_bytes: int, floor: int, next_save_bytes: int, history: Sequence[tuple[float, int]]
) -> Forecast:
    """Extrapolate free space.

    Args:
        history: (monotonic seconds, free bytes), oldest first.
    """
    seconds_left = None
    if len(history) >= 2:
        (first_s, first_free), (last_s, last_free) = history[0], history[-1]
        rate = (first_free - last_free) / max(1e-9, last_s - first_s)
        if rate > 0:
            seconds_left = max(0.0, (free_bytes - floor) / rate)
    return Forecast(free_bytes, floor, next_save_bytes, seconds_left)


@dataclass(frozen=True, slots=True)
class Offer:
    """Something an owner can spare. `exclusive_bytes`: what its going really frees."""

    what: str
    why: str
    exclusive_bytes: int
    free: Callable[[], None]


class Owner(Protocol):
    """A room that can spare something; `offers` yields the most expendable first."""

    @property
    def name(self) -> str: ...

    def offers(self) -> Iterable[Offer]: ...


@dataclass(frozen=True, slots=True)
class Freed:
    owner: str
    what: str
    why: str
    bytes: int


@dataclass(slots=True)
class Tally:
    """Deletions in a row that gave nothing back to one filesystem, kept from one try to the next:
    what has no effect (a snapshot holds it, say) is not done again and again.

    Once `spent`, a single deletion tries again after `TRY_AGAIN_S`, then after twice that, and so
    on: others may just have written as fast as room was made.
    """

    now_s: Callable[[], float] = clock.monotonic_s
    without_effect: int = 0
    promised_bytes: int = 0  # by those deletions
    free_bytes: int = 0  # before them
    tries: int = 0
    spent_at_s: float = 0.0

    @property
    def spent(self) -> bool:
        return self.without_effect >= WITHOUT_EFFECT_LIMIT

    def look(self, free_bytes: int) -> None:
        """Before deleting. Some filesystems give bytes back seconds later: half will do."""
        if free_bytes - self.free_bytes >= self.promised_bytes / 2:
            self._begin(free_bytes)
        elif self.spent and self.now_s() - self.spent_at_s >= TRY_AGAIN_S * 2**self.tries:
            self.without_effect, self.tries = WITHOUT_EFFECT_LIMIT - 1, self.tries + 1

    def count(self, promised_bytes: int, before_bytes: int, free_bytes: int) -> None:
        """After a deletion."""
        if free_bytes > before_bytes:
            self._begin(free_bytes)
            return
        self.without_effect += 1
        self.promised_bytes += promised_bytes
        self.spent_at_s = self.now_s()

    def _begin(self, free_bytes: int) -> None:
        self.without_effect = self.promised_bytes = self.tries = 0
        self.free_bytes = free_bytes


def reclaim(
    wanted_free_bytes: int,
    owners: Sequence[Owner],
    measure: Callable[[], int],
    tally: Tally | None = None,
) -> Iterator[Freed]:
    """Let owners delete, in their order, until enough is free or nothing more has an effect.

    What needs room itself in order to go is passed over on a full disk.

    Args:
        owners: each offers only what lies on the filesystem that `measure` looks at.
        tally: of earlier tries on that filesystem; changed here.

    Yields:
        Each thing as soon as it went, so that it is known whatever happens to the next.

    Raises:
        OSError: an owner could not delete what it offered.
    """
    tally = tally or Tally()
    passed_over: OSError | None = None
    free = measure()
    tally.look(free)
    if free >= wanted_free_bytes or tally.spent:
        return
    went = False
    for owner in owners:
        for offer in owner.offers():
            if free >= wanted_free_bytes or tally.spent:
                return
            if offer.exclusive_bytes <= 0:
                continue
            try:
                offer.free()
            except OSError as problem:
                if problem.errno not in FULL:
                    raise
                passed_over = problem
                continue
            before, free, went = free, measure(), True
            tally.count(offer.exclusive_bytes, before, free)
            # Others write meanwhile: less than nothing was not given back.
            yield Freed(owner.name, offer.what, offer.why, max(0, free - before))
    if passed_over is not None and not went:
        raise passed_over


def names_below(path: Path) -> list[Path]:
    """Files and folders in it, at any depth. What vanishes meanwhile is left out: others delete."""
    return [
        Path(folder, name)
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
    ]


def exclusive_bytes(path: Path) -> int:
    """Bytes that go when `path` goes: files that another name shares (a hard link) do not count.

    Reflinked extents cannot be told apart cheaply and count in full; `reclaim` measures again.
    """
    if path.is_symlink() or path.is_file():
        entries = [path]
    else:
        entries = [entry for entry in names_below(path) if not entry.is_dir()]
    seen: dict[tuple[int, int], list[int]] = {}
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            found = entry.lstat()
            record = seen.setdefault((found.st_dev, found.st_ino), [0, 0, 0])
            record[0] += 1
            record[1], record[2] = found.st_nlink, found.st_blocks * 512
    return sum(size for here, links, size in seen.values() if here >= links)


def free_bytes(path: Path) -> int:
    """What this user may still write on the filesystem of `path`."""
    return shutil.disk_usage(path).free


def total_bytes(path: Path) -> int:
    """Without what the filesystem keeps for root: what is not free of it is in use, as df says."""
    usage = shutil.disk_usage(path)
    return usage.used + usage.free


class Ballast:
    """A preallocated file given up when the disk is full, so that renames and logs still work."""

    def __init__(self, path: Path, size: int = BALLAST_BYTES) -> None:
        self._path = path
        self._size = size

    @property
    def there(self) -> bool:
        return self._path.exists()

    def put(self) -> bool:
        """Allocate it; False when there is no room for it now."""
        if self.there:
            return True
        staged = durable.staging_name(self._path)
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
            staged.rename(self._path)
        except OSError:
            staged.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)
        return True

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)
