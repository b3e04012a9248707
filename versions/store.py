"""The versions of one model: every question about them and every change to them.

Invariant: a change either happened or did not, whenever the process dies; nothing that was
committed leaves except through the trash. All calls block (hashing, fsync): call from a thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trainer_tui.safety import clock, disk, durable, manifest
from trainer_tui.safety.config import Retention
from trainer_tui.safety.errors import Corrupt, NotFound, Refused
from trainer_tui.safety.manifest import FileEntry
from trainer_tui.safety.text import printable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import (
    check,
    emergency,
    exporting,
    graph,
    impact,
    line,
    making,
    records,
    restoring,
    retention,
    shelf,
    trained,
    trash,
)
from trainer_tui.versions.check import Proof
from trainer_tui.versions.difference import Difference, compare
from trainer_tui.versions.emergency import Emergency
from trainer_tui.versions.graph import Graph
from trainer_tui.versions.layout import (
    Layout,
    exclusive,
    plain_words,
    version_number,
    writer_held,
)
from trainer_tui.versions.line import Position
from trainer_tui.versions.making import Wish
from trainer_tui.versions.proving import Prover
from trainer_tui.versions.records import TrainedFile, Version
from trainer_tui.versions.restoring import Restored, Source
from trainer_tui.versions.trash import Trashed

DESCRIPTION_CHARACTERS = 500
FILES_IN_LISTS = 20
Versions: TypeAlias = list[Version]  # the class has a method of that name
JobIds: TypeAlias = list[int]


class VersionStore:
    """One workspace's versions. The disk is the truth; only the last proof is remembered, for
    a moment, so that verifying and then restoring reads the files once. `in_use`: see `hold`."""

    def __init__(self, workspace: Workspace, now: Callable[[], str] = clock.now_iso) -> None:
        self.workspace = workspace
        self.layout = Layout(workspace)
        self._now = now
        self._prover = Prover(self.layout)
        self.in_use: set[str] = set()

    # --- looking --------------------------------------------------------------------------------

    def list(self) -> Versions:
        """Every version, the newest number first, damaged ones with their state and problem."""
        return shelf.list_versions(self.layout)

    def get(self, number: int) -> Version:
        """Raises NotFound."""
        found = [version for version in self.list() if version.number == number]
        for version in sorted(found, key=lambda version: version.state != "ok"):
            return version
        raise NotFound(
            f"there is no version {number}", "trainer-tui versions list shows which there are"
        )

    def as_dict(self) -> dict[str, Any]:
        """The API's `GET /v1/versions`. `latest` is the newest sound one, `best` the one with the
        lowest loss on the fixed set in use; of each version's files only the last few are in it,
        `show` has them all."""
        versions = self.list()
        leading = retention.best_versions(versions, 1)
        sound = [version.number for version in versions if version.state == "ok"]
        here = self.position()
        return {
            "versions": [version.as_dict(FILES_IN_LISTS) for version in versions],
            "latest": sound[0] if sound else None,
            "best": leading[0].number if leading else None,
            "current_lineage": here.lineage if here else 0,
        }

    def position(self) -> Position | None:
        """Where the newest checkpoint that looks whole stands; None when there is none."""
        return shelf.position(self.layout)

    def file(self, number: int, name: str) -> tuple[Path, FileEntry]:
        """Path and hash of one file of a version, as an inference machine fetches it.

        Raises:
            NotFound: no such version, or it has no such file.
            Corrupt: the version is damaged.
        """
        version = self.get(number)
        if version.state != "ok":
            raise Corrupt(f"{version.name} is {version.state}: {version.problem}")
        for entry in manifest.read(version.folder).files:
            if entry.name == name:
                return version.folder / name, entry
        raise NotFound(f"{version.name} has no file {printable(name, 100)!r}")

    def verify(self, number: int) -> Proof:
        """Hash every file and open every tensor; what is found is remembered as its state."""
        return self._prover.version(self.get(number))

    def show(self, number: int) -> dict[str, Any]:
        """Everything about one version: what its files did, what it would free, what came since.

        Raises:
            NotFound: no such version.
        """
        version = self.get(number)
        files = version.record.files if version.record else []
        shown = version.as_dict() | {
            "impact": impact.total(files).as_dict(),
            "change_since_parent": impact.since_parent(version, self.list()),
            "strongest": [file.as_dict() for file in impact.strongest(files)[:10]],
            "exclusive_bytes": disk.exclusive_bytes(version.folder),
        }
        return shown | self.undone_by(number)

    def undone_by(self, number: int) -> dict[str, Any]:
        """What a restore would undo, for the API: `files_since`, or why nobody can know.

        Raises:
            NotFound: no such version.
        """
        try:
            files = self.files_since(number)
        except Corrupt as damage:
            return {"files_since": [], "files_since_problem": damage.message}
        return {"files_since": [file.as_dict() for file in files], "files_since_problem": None}

    def files_since(self, number: int) -> tuple[TrainedFile, ...]:
        """Files that the current model has learnt and this version has not, newest first.

        Raises:
            NotFound: no such version.
            Corrupt: the version's record or the ledger is damaged.
        """
        version = self.get(number)
        found = emergency.standing(self.layout)
        if version.record is None:
            raise Corrupt(version.problem)
        head = found.sealed.ledger if found else None
        since = trained.change(self.workspace.ledger, head, version.record.ledger).lost
        return tuple(TrainedFile.of(entry) for entry in since)

    def lost_too(self, number: int, unsaved: Mapping[int, str]) -> JobIds:
        """As `trained.lost_too`, for a restore of this version. Raises NotFound."""
        version, found = self.get(number), emergency.standing(self.layout)
        if version.record is None:
            return []
        head = found.sealed.ledger if found else None
        return trained.lost_too(self.workspace.ledger, head, version.record.ledger, unsaved)

    def rollback_target(self) -> Version:
        """The version that `rollback` would restore now. Raises Refused when there is none."""
        branches = records.read_branches(self.layout)
        target = line.previous(self.list(), self.position(), branches)
        if target is None:
            raise Refused(
                "there is no version before the current state to go back to",
                "trainer-tui versions list shows what there is",
            )
        return target

    # --- changing -------------------------------------------------------------------------------

    def create(
        self,
        checkpoint_folder: Path,
        description: str,
        *,
        automatic: bool = False,
        keep_optimizer: bool = True,
    ) -> Version:
        """Make a version of a committed checkpoint, sharing its files.

        Raises:
            NotFound: the checkpoint is gone.
            Corrupt: it is damaged.
            Refused: the description is too long, or the disk is full; nothing was made.
        """
        if len(description) > DESCRIPTION_CHARACTERS:
            raise Refused(
                f"the description has {len(description)} characters",
                f"at most {DESCRIPTION_CHARACTERS} are kept",
            )
        wish = Wish(checkpoint_folder, printable(description), automatic, keep_optimizer)
        with plain_words("the version was not made"), exclusive(self.layout):
            number = making.make(self.layout, wish, self.list(), self._now())
            return self.get(number)

    def restore(
        self, number: int, *, weights_only: bool = False, wait_s: float = 0.0, reason: str = ""
    ) -> Restored:
        """Commit a version again as the newest checkpoint, on a new lineage.

        Args:
            weights_only: leave its optimizer out (a way round a damaged optimizer part).
            wait_s: how long to wait for the trainer to let go of the model.
            reason: kept in the manifest; "restore" when empty.

        Raises:
            Refused: a trainer holds the model, or the disk is full; nothing was changed.
            NotFound: no such version.
            Corrupt: the version is damaged; nothing was changed.
        """
        with self._going_back(wait_s):
            return self._restore(number, weights_only, reason or "restore")

    def rollback(self, *, weights_only: bool = False, wait_s: float = 0.0) -> Restored:
        """Restore the version before the current state (see `line.previous`).

        Raises:
            Refused: there is none, a trainer holds the model, or the disk is full.
            Corrupt: that version is damaged; it is marked, and a second rollback goes past it.
        """
        with self._going_back(wait_s):
            return self._restore(self.rollback_target().number, weights_only, "rollback")

    def restore_emergency(self, number: int, *, wait_s: float = 0.0) -> Restored:
        """Undo a restore: commit an emergency backup again. Raises as `restore`."""
        with self._going_back(wait_s):
            found = emergency.get(self.layout, number)
            source = Source(found.name, found.folder, None, None, "restore")
            why = f"before {found.name} was restored"
            return self._commit_again(source, why)

    def hold(self, name: str) -> None:
        """Nobody lets go of this version or emergency backup, as long as it is `in_use`."""
        # Whoever lets something go decides and acts under this lock.
        with plain_words("nothing was restored"), exclusive(self.layout):
            self.in_use.add(name)

    @contextlib.contextmanager
    def _going_back(self, wait_s: float) -> Iterator[None]:
        with (
            plain_words("nothing was restored"),
            writer_held(self.workspace, wait_s),
            exclusive(self.layout),
        ):
            yield

    def restorable(self, number: int, *, weights_only: bool = False) -> Version:
        """The version, unless a cheap look says already that a restore will refuse it.

        Raises NotFound, Corrupt.
        """
        version = self.get(number)
        only_marked = check.look(version.folder).state == "ok" and version.record is not None
        if version.state != "ok" and not (weights_only and only_marked):  # it is proven again
            hint = "choose another one: trainer-tui versions list"
            raise Corrupt(f"{version.name} is {version.state}: {version.problem}", hint)
        return version

    def _restore(self, number: int, weights_only: bool, reason: str) -> Restored:
        version = self.restorable(number, weights_only=weights_only)
        part = None if weights_only else restoring.optimizer_part(version.folder)
        source = Source(version.name, version.folder, part, version.number, reason)
        why = f"before {version.name} was restored"
        return self._commit_again(source, why)

    def _commit_again(self, source: Source, why: str) -> Restored:
        versions, recent = self.list(), self._prover.recent()
        return restoring.commit_again(
            self.layout, source, versions, self._now(), why=why, recent=recent
        )

    def verify_weights(self, number: int) -> Version:
        """Hash what a restore without the optimizer takes. Raises NotFound, Corrupt."""
        version = self.get(number)
        if version.record is None:
            raise Corrupt(version.problem)
        self._prover.folder(version.folder)
        return version

    def verify_emergency(self, number: int) -> Emergency:
        """Hash an emergency backup. Raises NotFound, Corrupt."""
        found = emergency.get(self.layout, number)
        self._prover.folder(found.folder)
        return found

    def emergencies(self) -> tuple[Emergency, ...]:
        """Every emergency backup, the newest first."""
        return tuple(emergency.list_all(self.layout))

    def pin(self, number: int) -> Version:
        """Protect a version from retention and deletion. Raises NotFound."""
        with plain_words("the version was not pinned"), exclusive(self.layout):
            version = self.get(number)
            durable.make_directory(self.layout.pins)
            durable.replace(self.layout.pins / version.name, self._now().encode())
            return self.get(number)

    def unpin(self, number: int) -> Version:
        """Raises NotFound."""
        with plain_words("the version was not unpinned"), exclusive(self.layout):
            version = self.get(number)
            if version.pinned:
                durable.remove_file(self.layout.pins / version.name)
            return self.get(number)

    def delete(
        self,
        number: int,
        *,
        keep_days: int = Retention().trash_days,
        why: str = "deleted by a person",
    ) -> Trashed:
        """Move a version to the trash, from where `undelete` brings it back for `keep_days` days.

        Raises:
            NotFound: no such version.
            Refused: it is pinned, the current one, or one of the two newest sound ones.
        """
        with plain_words("the version was not deleted"), exclusive(self.layout):
            versions = self.list()
            version = self.get(number)
            reason = shelf.protected(version, versions)
            if reason:
                raise Refused(f"{version.name} cannot be deleted: {reason[0]}", reason[1])
            return trash.throw(self.layout, version.folder, why, self._now(), keep_days)

    def undelete(self, number: int) -> Version:
        """Bring a deleted version back under its old number.

        Raises:
            NotFound: it is not in the trash (any more).
            Refused: its place is taken.
        """
        with plain_words("the version was not brought back"), exclusive(self.layout):
            for entry in trash.contents(self.layout):
                if version_number(entry.note.name) == number:
                    trash.bring_back(self.layout, entry.note.name)
                    return self.get(number)
        raise NotFound(
            f"version {number} is not in the trash", "deleted ones stay retention.trash_days days"
        )

    def trashed(self) -> tuple[Trashed, ...]:
        """What can still be brought back, the latest deleted first."""
        return tuple(trash.contents(self.layout))

    # --- comparing and shipping -----------------------------------------------------------------

    def diff(self, first: int, second: int) -> Difference:
        """What lies between two versions. Raises NotFound, Corrupt."""
        return compare(self.workspace.ledger, self.get(first), self.get(second))

    def lineage(self) -> Graph:
        """Lineages, versions and restores as a graph; `Graph.draw` makes it text."""
        branches = records.read_branches(self.layout)
        kept = {e.sealed.lineage for e in self.emergencies() if e.sealed}
        return graph.build(self.list(), branches, emergency.standing(self.layout), kept)

    def export(self, number: int, target: Path, *, with_optimizer: bool = False) -> Path:
        """Copy a version to a folder that does not exist yet, hashes checked on the way.

        Raises:
            NotFound: no such version.
            Refused: the target is taken, not an absolute path, in the workspace, or its disk is
                full.
            Corrupt: the version is damaged; nothing is left at the target.
        """
        exporting.check_target(self.workspace, target)
        version = self.get(number)
        if version.state != "ok":
            raise Corrupt(f"{version.name} is {version.state}: {version.problem}")
        part = restoring.optimizer_part(version.folder) if with_optimizer else None
        with plain_words("nothing was exported"):
            try:
                exporting.export(version.folder, target, part)
            except FileNotFoundError as problem:
                raise Refused(f"{version.name} went away while it was copied: {problem}") from None
            except PermissionError as problem:
                raise Refused(f"nothing was exported: {problem}", "see who owns it") from None
        return target
