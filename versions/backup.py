"""The second location: real copies of the versions on another disk, because links share damage.

Invariant: a folder under its final name there was read back and matched its hashes. An
interrupted copy goes on where it ended. Nothing is ever deleted there: what retention lets go
here stays there until a person removes it.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_tui.safety import clock, durable, hashing, locks
from trainer_tui.safety.errors import Corrupt, NotFound, Refused
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import check, shelf, trash
from trainer_tui.versions.copies import (
    PARTIAL_PREFIX,
    Copy,
    Standing,
    look_at_all,
    partial_names,
    standing,
)
from trainer_tui.versions.copying import Progress, Telling, copy_folder, segment_is_sound
from trainer_tui.versions.layout import (
    Layout,
    exclusive,
    plain_words,
    raise_counter,
    read_counter,
)
from trainer_tui.versions.records import Version
from trainer_tui.versions.second_location import SecondLocation

DAMAGED_PREFIX = ".damaged-"


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """`missing`: sound versions that have no whole copy. `same_disk`: a bad disk takes both."""

    location: str
    reachable: bool
    problem: str
    same_disk: bool
    copied: tuple[str, ...]
    missing: tuple[str, ...]
    partial: tuple[str, ...]
    bytes: int
    free_bytes: int
    last_run_at: str

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class BackupRun:
    """Outcome of `run`: what was copied now, what was there, and what could not be."""

    copied: tuple[str, ...]
    already: tuple[str, ...]
    problems: tuple[str, ...]
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Tally:
    """A `BackupRun` that is being added up."""

    copied: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bytes: int = 0

    def ended(self, seconds: float) -> BackupRun:
        lists = tuple(self.copied), tuple(self.already), tuple(self.problems)
        return BackupRun(*lists, self.bytes, seconds)


class Backup:
    """One workspace's second location. Calls block for minutes: call from a thread."""

    def __init__(
        self, workspace: Workspace, location: Path, now: Callable[[], str] = clock.now_iso
    ) -> None:
        self.layout = Layout(workspace)
        self.place = SecondLocation(self.layout, location)
        self._now = now

    # --- looking --------------------------------------------------------------------------------

    def status(self) -> BackupStatus:
        """What is there and what is not; names and sizes only."""
        problem = self.place.problem()
        home = self.place.home()
        there = self.place.path / home.folder if home else None
        reachable = not problem
        copies = look_at_all(there) if there and reachable else {}
        sound = [v for v in shelf.list_versions(self.layout) if v.state == "ok"]
        missing = [v.name for v in sound if standing(v, copies.get(v.name)) != "the same"]
        whole = [name for name, copy in copies.items() if not copy.problem and name not in missing]
        return BackupStatus(
            location=str(self.place.path),
            reachable=reachable,
            problem=problem,
            same_disk=reachable and self.place.same_disk(),
            copied=tuple(sorted(whole, reverse=True)),
            missing=tuple(missing),
            partial=tuple(partial_names(there)) if there and reachable else (),
            bytes=sum(copies[name].bytes for name in whole),
            free_bytes=shutil.disk_usage(self.place.path).free if reachable else 0,
            last_run_at=home.last_run_at if home else "",
        )

    # --- copying --------------------------------------------------------------------------------

    def run(
        self,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        start_over: bool = False,
    ) -> BackupRun:
        """Copy every sound version that is not there yet, newest first, then read it back.

        Args:
            should_stop: asked after every few megabytes; the next run goes on from there.
            start_over: the second disk was emptied on purpose: begin a new folder on it.

        Raises:
            Refused: the location cannot be used, is full or went away, or a backup is running
                already.
        """
        started_s = clock.monotonic_s()
        tally = _Tally()
        with plain_words("the backup stopped"), self._only_one():
            there = self.place.prepare(start_over=start_over)
            with self.place.watched(there, should_stop) as stop:
                tally.problems += self._copy_records(there)
                copies = look_at_all(there)
                for version in shelf.list_versions(self.layout):
                    stands = standing(version, copies.get(version.name))
                    if not self._settle(version, there, stands, tally, progress, stop):
                        break
            self.place.remember_run(self._now())
        return tally.ended(clock.monotonic_s() - started_s)

    def _settle(
        self,
        version: Version,
        there: Path,
        stands: Standing,
        tally: _Tally,
        progress: Progress | None,
        stop: Callable[[], bool],
    ) -> bool:
        """Copy one version when it needs to be, and note how it went; False: it was stopped."""
        if version.state != "ok":
            tally.problems.append(f"{version.name} is {version.state} and was not copied")
            return True
        match stands:
            case "the same":
                tally.already.append(version.name)
                return True
            case "another":
                tally.problems.append(f"another {version.name} stands there; not copied")
                return True
        if stop():
            return False
        try:
            if not self._copy_version(version, there, progress, stop):
                return False
        except Corrupt as problem:
            tally.problems.append(problem.message)
        except FileNotFoundError:
            stop()  # the disk may have gone away, not the version
            tally.problems.append(f"{version.name} went away while it was copied")
        else:
            tally.copied.append(version.name)
            tally.bytes += version.bytes
        return True

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        durable.make_directory(self.layout.root)
        lock = locks.acquire(self.layout.root / ".backup.lock")
        if lock is None:
            raise Refused("a backup is running already")
        try:
            yield
        finally:
            lock.release()

    def _copy_records(self, there: Path) -> list[str]:
        """Ledger segments and branches: small, immutable, and nothing can be restored without."""
        problems = []
        pairs = ((self.layout.workspace.ledger, "ledger"), (self.layout.branches, "lineages"))
        for source, name in pairs:
            for path in sorted(source.glob("*.json")) if source.is_dir() else ():
                target = there / name / path.name
                if target.exists():
                    continue
                data = path.read_bytes()
                if name == "ledger" and not segment_is_sound(path.name, data):
                    problems.append(f"ledger segment {path.name} is damaged and was not copied")
                    continue
                durable.replace(target, data, 0o400)
        for counter in (self.layout.version_counter, self.layout.emergency_counter):
            if counter.is_file():
                durable.replace(there / counter.name, counter.read_bytes())
        return problems

    def _copy_version(
        self,
        version: Version,
        there: Path,
        progress: Progress | None,
        should_stop: Callable[[], bool],
    ) -> bool:
        partial = there / "versions" / f"{PARTIAL_PREFIX}{version.name}"
        told = Telling(version, progress)
        if not copy_folder(version.folder, partial, told, should_stop):
            return False
        final = partial.with_name(version.name)
        try:
            check.prove_version(partial, should_stop=should_stop)
        except hashing.GaveWay:
            return False
        except Corrupt:
            should_stop()  # on a disk that went away nothing is to be removed
            durable.remove_tree(partial)  # so that the next run starts it anew
            raise
        should_stop()  # for its look at the disk: the wish to stop comes too late now
        if final.exists():
            durable.rename(
                final, final.with_name(f"{DAMAGED_PREFIX}{version.name}-{secrets.token_hex(4)}")
            )
        durable.rename(partial, final)
        return True

    # --- bringing back --------------------------------------------------------------------------

    def fetch(self, number: int, should_stop: Callable[[], bool] = lambda: False) -> Version:
        """Copy a version back from the second location, in place of a damaged or missing one.

        Args:
            should_stop: asked after every few megabytes; the next try goes on from there.

        Raises:
            NotFound: there is no copy of it.
            Refused: the location cannot be used or went away, a sound version of that number is
                here, or it was told to stop.
            Corrupt: the copy is damaged too.
        """
        with plain_words("nothing was brought back"), self._only_one():
            there = self.place.reached()
            copy = self._whole_copy(number, there)
            self._fetch_records(there)
            self._refuse_if_sound(number)
            durable.make_directory(self.layout.versions)
            # Where it will stand: the versions may be on another disk than what is around them.
            fetching = self.layout.versions / f"{PARTIAL_PREFIX}{copy.folder.name}"
            with self.place.watched(there, should_stop) as stop:
                self._bring(copy, fetching, stop)
            with exclusive(self.layout):
                self._refuse_if_sound(number)
                target = self.layout.versions / copy.folder.name
                if target.exists():
                    why = "damaged; its copy was brought back"
                    trash.throw(self.layout, target, why, self._now(), 7)
                durable.rename(fetching, target)
                check.unmark_damaged(self.layout, target.name)
                return shelf.examine(self.layout, number, target)

    def _bring(self, copy: Copy, fetching: Path, should_stop: Callable[[], bool]) -> None:
        try:
            whole = copy_folder(copy.folder, fetching, None, should_stop)
            if whole:
                check.prove_version(fetching, should_stop=should_stop)
        except hashing.GaveWay:
            whole = False
        except Corrupt:
            should_stop()  # on a disk that went away it is no fault of the copy
            durable.remove_tree(fetching)  # nobody else would, and it is as large as a version
            raise
        if not whole:
            hint = "ask again: it goes on where it ended"
            raise Refused(f"{copy.folder.name} was not brought back: it was told to stop", hint)

    def _whole_copy(self, number: int, there: Path) -> Copy:
        copies = [copy for copy in look_at_all(there).values() if copy.number == number]
        if not copies:
            raise NotFound(f"there is no copy of version {number} at {self.place.path}")
        copy = min(copies, key=lambda copy: copy.problem != "")
        if copy.problem:
            raise Corrupt(f"the copy at {self.place.path} is damaged: {copy.problem}")
        return copy

    def _refuse_if_sound(self, number: int) -> None:
        for version in shelf.list_versions(self.layout):
            if version.number == number and version.state == "ok":
                hint = "if you doubt it: trainer-tui versions verify"
                raise Refused(f"{version.name} is here and sound", hint)

    def _fetch_records(self, there: Path) -> None:
        pairs = ((self.layout.workspace.ledger, "ledger"), (self.layout.branches, "lineages"))
        for target, name in pairs:
            durable.make_directory(target)
            for path in sorted((there / name).glob("*.json")):
                here, data = target / path.name, path.read_bytes()
                if name == "lineages":
                    sound = here.exists()
                else:
                    sound = here.exists() and segment_is_sound(path.name, here.read_bytes())
                    if not segment_is_sound(path.name, data):
                        continue
                if not sound:
                    with exclusive(self.layout):
                        durable.replace(here, data, 0o400)
        for counter in (self.layout.version_counter, self.layout.emergency_counter):
            with exclusive(self.layout):
                raise_counter(counter, read_counter(there / counter.name))
