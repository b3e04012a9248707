"""What this room can spare when the disk is full, offered one at a time (`safety.disk.reclaim`).

Order: the trash, what the policy lets go, then `retention.for_space`. Each offer is decided anew
and names the bytes that really come back; the two newest, the current, the best and the pinned
are never offered.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trainer_tui.safety import clock, disk, filesystems
from trainer_tui.safety.config import Config
from trainer_tui.safety.disk import Offer, exclusive_bytes
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import bundle, check, keeping, retention, trash
from trainer_tui.versions.check import Verified
from trainer_tui.versions.keeping import Survey
from trainer_tui.versions.layout import OPTIMIZER_PART, Layout
from trainer_tui.versions.retention import Decision, Plan
from trainer_tui.versions.trash import Trashed


@dataclass(frozen=True, slots=True)
class Expected:
    """What would go, and the bytes that come back then, everything listed before it gone."""

    what: str
    why: str
    bytes: int


def _words(decision: Decision) -> str:
    name = decision.path.name
    return f"the optimizer of {name}" if decision.action == "thin" else name


def _leaving(decision: Decision) -> list[Path]:
    """Folders or files that a decision takes away."""
    if decision.action == "trash":
        return [decision.path]
    part = decision.path / OPTIMIZER_PART
    if part.is_dir():
        return [part]
    sealed = check.look(decision.path).sealed
    entries = bundle.optimizer_entries(sealed) if sealed else []
    return [decision.path / entry.name for entry in entries]


def _without(found: Survey, decision: Decision) -> Survey:
    """The survey as it would be after a decision."""
    path = decision.path
    if decision.action == "trash":
        return Survey(
            [point for point in found.checkpoints if point.folder != path],
            [version for version in found.versions if version.folder != path],
            [entry for entry in found.emergencies if entry.folder != path],
        )
    return Survey(
        [replace(p, weights_only=p.weights_only or p.folder == path) for p in found.checkpoints],
        [replace(v, weights_only=v.weights_only or v.folder == path) for v in found.versions],
        found.emergencies,
    )


class _Links:
    """Counts names down: a file's bytes come back when its last name goes."""

    def __init__(self) -> None:
        self._gone: dict[tuple[int, int], set[Path]] = {}

    def freed(self, paths: list[Path]) -> int:
        size = 0
        for path in paths:
            for entry in disk.names_below(path) if path.is_dir() else [path]:
                size += self._one(entry)
        return size

    def _one(self, path: Path) -> int:
        try:
            found = path.lstat()
        except FileNotFoundError:
            return 0
        names = self._gone.setdefault((found.st_dev, found.st_ino), set())
        if stat.S_ISDIR(found.st_mode) or path in names:
            return 0
        names.add(path)
        return found.st_blocks * 512 if len(names) == found.st_nlink else 0


class _Tried:
    """What was offered already. A thinner checkpoint needs room for its manifest: one that found
    none is offered again once something else went, before anything dearer does."""

    def __init__(self) -> None:
        self._offered: set[tuple[Path, str]] = set()
        self._failed: set[tuple[Path, str]] = set()

    def __contains__(self, decision: Decision) -> bool:
        return (decision.path, decision.action) in self._offered

    def add(self, decision: Decision) -> None:
        self._offered.add((decision.path, decision.action))

    def failed(self, decision: Decision) -> None:
        self._failed.add((decision.path, decision.action))

    def again(self) -> None:
        self._offered -= self._failed
        self._failed.clear()


class VersionsOwner:
    """An owner for `disk.reclaim`. Hashes what is kept before it offers anything committed.

    `in_use`: names of folders that somebody restores from just now; they stay. `here`: whether a
    folder lies on the filesystem that is short; nothing else is offered, or emptied from the trash.
    """

    name = "versions"

    def __init__(
        self,
        workspace: Workspace,
        config: Config,
        now: Callable[[], str] = clock.now_iso,
        in_use: Collection[str] = (),
        here: Callable[[Path], bool] = lambda folder: True,
    ) -> None:
        self._in_use, self._here = in_use, here
        self._layout = Layout(workspace)
        self._config = config
        self._now = now
        self._verified = Verified(self._layout)

    def offers(self) -> Iterator[Offer]:
        """The most expendable first. Ask for the next one only after `free` was called."""
        thrown, half_gone = self._trashed()
        if folders := [*(entry.folder for entry in thrown), *half_gone]:
            # Two of them may share files, so together they can free more than one by one.
            size = max(1, sum(exclusive_bytes(folder) for folder in folders))
            names = ", ".join(entry.note.name for entry in thrown[:5]) or "what was half gone"
            yield Offer(f"the trash ({names})", "space is short", size, self._empty)
        for decide in (self._by_policy, self._for_space):
            tried = _Tried()
            while decision := self._next(decide, tried):
                tried.add(decision)
                yield self._offer(decision, decide, tried)

    def _trashed(self) -> tuple[list[Trashed], list[Path]]:
        thrown = [entry for entry in trash.contents(self._layout) if self._here(entry.folder)]
        return thrown, [path for path in trash.half_gone(self._layout) if self._here(path)]

    def _by_policy(self, found: Survey) -> Plan:
        policy = self._config.retention
        plan = retention.plan(found.checkpoints, found.versions, policy, found.emergencies)
        return self._sparing(plan)

    def _for_space(self, found: Survey) -> Plan:
        plan = retention.for_space(found.checkpoints, found.versions, found.emergencies)
        return self._sparing(plan)

    def _sparing(self, plan: Plan) -> Plan:
        go = (decision for decision in plan.go if decision.path.name not in self._in_use)
        return replace(plan, go=tuple(decision for decision in go if self._here(decision.path)))

    def _next(self, decide: Callable[[Survey], Plan], tried: _Tried) -> Decision | None:
        for decision in keeping.proven(self._layout, decide, verified=self._verified):
            if decision not in tried:
                return decision
        return None

    def _offer(self, decision: Decision, decide: Callable[[Survey], Plan], tried: _Tried) -> Offer:
        def free() -> None:
            try:
                keeping.carry_out(self._layout, [decision], decide, self._now(), 0)
            except OSError:
                tried.failed(decision)
                raise
            self._empty()
            tried.again()

        size = sum(exclusive_bytes(path) for path in _leaving(decision))
        return Offer(_words(decision), decision.why, size, free)

    def preview(self) -> list[Expected]:
        """What `offers` would yield if nothing were ever enough, in the same order. Names and
        sizes only: nothing is hashed, so what proves damaged then can change it."""
        ledger = _Links()
        thrown, half_gone = self._trashed()
        expected = [
            Expected(
                f"{entry.note.name} in the trash", entry.note.why, ledger.freed([entry.folder])
            )
            for entry in thrown
        ]
        for folder in half_gone:
            size = ledger.freed([folder])
            expected.append(Expected("what was half gone", "it was let go before", size))
        found = keeping.survey(self._layout)
        for decide in (self._by_policy, self._for_space):
            for decision in decide(found).go:
                size = ledger.freed(_leaving(decision))
                expected.append(Expected(_words(decision), decision.why, size))
                found = _without(found, decision)
        return expected

    def _empty(self) -> None:
        keeping.purge(self._layout, self._now(), everything=True, here=self._here)


def make_room(
    workspace: Workspace,
    config: Config,
    wanted_free_bytes: int,
    measure: Callable[[], int] | None = None,
) -> list[disk.Freed]:
    """Free space on the disk of the models, by this room's means alone."""
    owner = VersionsOwner(workspace, config, here=filesystems.beside(workspace.models))
    ask = measure or (lambda: disk.free_bytes(workspace.models))
    return list(disk.reclaim(wanted_free_bytes, [owner], ask))
