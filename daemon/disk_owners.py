"""What queue, trainer and data can spare on a short disk; `versions.spare` has the rest.

Invariant: nothing committed is among it. Each owner offers only what lies `here`, on the
filesystem that is short; the cheapest to have again comes first.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from trainer_tui.safety import clock, disk, durable
from trainer_tui.safety.disk import Offer, Owner
from trainer_tui.safety.workspace import Workspace

EVICT_TIMEOUT_S = 120.0
STAGING_AGE_S = 3600.0
Here = Callable[[Path], bool]


def anywhere(_path: Path) -> bool:
    return True


def owners_here(workspace: Workspace, here: Here) -> list[Owner]:
    """In the order in which things go."""
    return [
        TrashOwner(workspace, here),
        StagingOwner(workspace, here),
        CacheOwner(workspace, here),
    ]


class TrashOwner:
    """What a person removed from the queue."""

    name = "trash"

    def __init__(self, workspace: Workspace, here: Here = anywhere) -> None:
        self._trash, self._here = workspace.trash, here

    def offers(self) -> Iterator[Offer]:
        for path in filter(self._here, sorted(self._trash.glob("job.*"))):
            size = disk.exclusive_bytes(path)
            yield Offer(path.name, "removed by a person", size, partial(_delete, path))


class StagingOwner:
    """What a killed process left half written. Whoever stages somewhere sweeps it at its next
    start; on a short disk that may be too late. Nothing that is being written is so old."""

    name = "staging"

    def __init__(
        self,
        workspace: Workspace,
        here: Here = anywhere,
        now_s: Callable[[], float] = clock.now_s,
    ) -> None:
        root = workspace
        self._places = [root.state, root.queue, root.current_model, root.ledger, root.versions]
        self._places += [root.emergency, root.validation, root.cache]
        self._here, self._now_s = here, now_s

    def offers(self) -> Iterator[Offer]:
        for place in filter(self._here, self._places):
            for path in sorted(place.glob(f"{durable.STAGING_PREFIX}*")):
                if self._now_s() - _touched_s(path) > STAGING_AGE_S:
                    size = disk.exclusive_bytes(path)
                    yield Offer(path.name, "left half written", size, partial(_delete, path))


def _touched_s(path: Path) -> float:
    """When anything in it was written last; wall time. What vanishes meanwhile is no left-over."""
    newest = 0.0
    for entry in (path, *disk.names_below(path)):
        try:
            newest = max(newest, entry.lstat().st_mtime)
        except FileNotFoundError:
            return clock.now_s()
    return newest


class CacheOwner:
    """Tokens of files; they are made again when they are needed."""

    name = "data"

    def __init__(self, workspace: Workspace, here: Here = anywhere) -> None:
        self._cache, self._here = workspace.cache, here

    def offers(self) -> Iterator[Offer]:
        tokens = self._cache / "tokens"
        size = disk.exclusive_bytes(tokens) if tokens.is_dir() else 0
        if size and self._here(tokens):
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
