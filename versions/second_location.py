"""Where the second location keeps our copies: one folder there, found again by a note in it.

Invariant: the folder is made once, by the first run. When it is not there any more, the disk is
not mounted, and nothing is made in its place unless a person says that it was emptied. A disk that
goes away during a run ends the run: nothing is ever made above our folder, and before every step
it is asked whether it is still the one on that disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.errors import Refused
from trainer_tui.versions.layout import Layout, committed_folders, exclusive

NOTE = "WORKSPACE"  # whose copies these are: the absolute path of the workspace


class Home(msgspec.Struct, frozen=True):
    """Kept here: where the copies are. Tells an unmounted disk from one that was never used."""

    location: str
    folder: str
    last_run_at: str = ""


class SecondLocation:
    """The place that a person chose, and our folder in it."""

    def __init__(self, layout: Layout, path: Path) -> None:
        self.layout = layout
        self.path = path.expanduser()

    def problem(self) -> str:
        """Why it cannot be used now; empty when it can."""
        if not self.path.is_absolute():
            return f"the second location must be an absolute path, not {self.path}"
        if not self.path.is_dir():
            return f"{self.path} is not there; is the disk mounted?"
        if not os.access(self.path, os.R_OK | os.X_OK, effective_ids=True):
            return f"{self.path} cannot be read by this user; change its owner or its mode"
        if self.path.resolve().is_relative_to(self._root):
            return f"{self.path} is inside the workspace; choose another disk"
        home = self.home()
        if home and not self._holds(home):
            return f"{self.path} no longer holds {home.folder}; is the disk mounted?"
        return ""

    def _holds(self, home: Home) -> bool:
        """A folder of that name without the note is not taken for ours."""
        return (self.path / home.folder / NOTE).is_file()

    def same_disk(self) -> bool:
        return self.path.stat().st_dev == self.layout.workspace.models.stat().st_dev

    def home(self) -> Home | None:
        """None when no backup was ever made to it."""
        try:
            home = msgspec.json.decode(self._home_file.read_bytes(), type=Home)
            if home.location == str(self.path):
                return home
        except (FileNotFoundError, msgspec.MsgspecError):
            pass
        return self._found_again()

    def _found_again(self) -> Home | None:
        """Our folder there, known by its note, when our own note died with the first disk."""
        if not self.path.is_absolute():
            return None
        try:
            folders = committed_folders(self.path)
        except OSError:
            return None  # `problem` says that it cannot be read
        ours = (folder for folder in folders if self._is_ours(folder))
        return next((Home(str(self.path), folder.name) for folder in ours), None)

    def _is_ours(self, folder: Path) -> bool:
        note = folder / NOTE
        try:
            return note.is_file() and note.read_text(errors="replace") == str(self._root)
        except OSError:
            return False  # what cannot be read is another's: `lost+found` is root's on every disk

    @property
    def _home_file(self) -> Path:
        return self.layout.root / "second_location.json"

    @property
    def _root(self) -> Path:
        return self.layout.workspace.root.resolve()

    def prepare(self, *, start_over: bool) -> Path:
        """Our folder there, made when there is none yet.

        Raises:
            Refused: the location cannot be used.
        """
        problem = self.problem()
        home = self.home()
        lost = home is not None and not self._holds(home)
        if problem and not (start_over and lost):
            raise Refused(f"no backup was made: {problem}", "see versioning.second_location")
        if home is None or (start_over and lost):
            name = f"{self._root.name}-{secrets.token_hex(4)}"
            durable.make_directory(self.path / name, parents=False)
            durable.replace(self.path / name / NOTE, str(self._root).encode())
            home = Home(str(self.path), name)
            self._write(home)
        for inner in ("versions", "ledger", "lineages"):
            durable.make_directory(self.path / home.folder / inner, parents=False)
        return self.path / home.folder

    def reached(self) -> Path:
        """Our folder there, for reading. Raises Refused when it cannot be reached."""
        problem = self.problem()
        home = self.home()
        if problem or home is None:
            raise Refused(problem or f"no backup was ever made to {self.path}")
        return self.path / home.folder

    @contextlib.contextmanager
    def watched(self, there: Path, should_stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
        """While the block works in `there`, our folder: a `should_stop` to be asked before every
        step, which looks first whether the folder is still the one that the block began with.

        The device tells the disk from what may lie under its mount point. The inode would tell no
        more, and some filesystems (FUSE) give a new one at every look.

        Raises:
            Refused: the folder went away or is another one; also in place of the OSErrors that
                this gives rise to.
        """
        device = there.stat().st_dev

        def stop() -> bool:
            try:
                same = there.stat().st_dev == device and (there / NOTE).is_file()
            except OSError:
                same = False
            if not same:
                hint = "mount it again; the next run goes on where this one ended"
                raise Refused(f"{self.path} went away in the middle; is the disk mounted?", hint)
            return should_stop()

        try:
            yield stop
        except OSError:
            stop()
            raise

    def remember_run(self, at: str) -> None:
        home = self.home()
        assert home is not None  # `prepare` wrote it
        self._write(msgspec.structs.replace(home, last_run_at=at))

    def _write(self, home: Home) -> None:
        with exclusive(self.layout):
            durable.replace(self._home_file, msgspec.json.encode(home))
