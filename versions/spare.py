"""What this room can spare when the disk is full, offered one at a time (`safety.disk.reclaim`).

Order: the trash, what the policy lets go, then `retention.for_space`. Each offer is decided anew
and names the bytes that really come back; the two newest, the current, the best and the pinned
are never offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from trainer_tui.safety import clock, disk
from trainer_tui.safety.config import Config
from trainer_tui.safety.disk import Offer, exclusive_bytes
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import bundle, check, keeping, retention, trash
from trainer_tui.versions.keeping import Survey
from trainer_tui.versions.layout import OPTIMIZER_PART, Layout
from trainer_tui.versions.retention import Decision, Plan


class VersionsOwner:
    """An owner for `disk.reclaim`. Hashes what is kept before it offers anything committed."""

    name = "versions"

    def __init__(
        self, workspace: Workspace, config: Config, now: Callable[[], str] = clock.now_iso
    ) -> None:
        self._layout = Layout(workspace)
        self._config = config
        self._now = now

    def offers(self) -> Iterator[Offer]:
        """The most expendable first. Ask for the next one only after `free` was called."""
        if thrown := trash.contents(self._layout):
            # Two of them may share files, so together they can free more than one by one.
            size = max(1, sum(exclusive_bytes(entry.folder) for entry in thrown))
            names = ", ".join(entry.note.name for entry in thrown[:5])
            yield Offer(f"the trash ({names})", "space is short", size, self._empty)
        for decide in (self._by_policy, self._for_space):
            tried: set[tuple[Path, str]] = set()
            while decision := self._next(decide, tried):
                tried.add((decision.path, decision.action))
                yield self._offer(decision, decide)

    def _by_policy(self, found: Survey) -> Plan:
        policy = self._config.retention
        return retention.plan(found.checkpoints, found.versions, policy, found.emergencies)

    def _for_space(self, found: Survey) -> Plan:
        return retention.for_space(found.checkpoints, found.versions, found.emergencies)

    def _next(
        self, decide: Callable[[Survey], Plan], tried: set[tuple[Path, str]]
    ) -> Decision | None:
        for decision in keeping.proven(self._layout, decide):
            if (decision.path, decision.action) not in tried:
                return decision
        return None

    def _offer(self, decision: Decision, decide: Callable[[Survey], Plan]) -> Offer:
        def free() -> None:
            keeping.carry_out(self._layout, [decision], decide, self._now(), 0)
            self._empty()

        what = f"{decision.action} {decision.path.name}"
        return Offer(what, decision.why, self._size(decision), free)

    def _size(self, decision: Decision) -> int:
        if decision.action == "trash":
            return exclusive_bytes(decision.path)
        part = decision.path / OPTIMIZER_PART
        if part.is_dir():
            return exclusive_bytes(part)
        sealed = check.look(decision.path).sealed
        entries = bundle.optimizer_entries(sealed) if sealed else []
        return sum(exclusive_bytes(decision.path / entry.name) for entry in entries)

    def _empty(self) -> None:
        keeping.purge(self._layout, self._now(), everything=True)


def make_room(
    workspace: Workspace,
    config: Config,
    wanted_free_bytes: int,
    measure: Callable[[], int] | None = None,
) -> list[disk.Freed]:
    """Free space until `wanted_free_bytes` are free, by this room's means alone."""
    owner = VersionsOwner(workspace, config)
    ask = measure or (lambda: disk.free_bytes(workspace.models))
    return disk.reclaim(wanted_free_bytes, [owner], ask)
