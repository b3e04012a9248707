"""Where everything is: the folders of one workspace, and how the one in use is found.

A workspace is a directory with a `config.toml`. Nothing outside it is ever written.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import durable
from trainer_tui.safety.errors import WorkspaceProblem

CONFIG_NAME = "config.toml"
PRIORITIES = ("high", "normal", "low")
QUEUE_FOLDERS = (*PRIORITIES, "processing", "recently_completed", "failed")
ENVIRONMENT_KEY = "TRAINER_TUI_WORKSPACE"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths only; holding one says nothing about what exists."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def last_good_config(self) -> Path:
        """A copy that the daemon keeps of the last `config.toml` that could be used."""
        return self.state / "config.last_good.toml"

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def stop_file(self) -> Path:
        return self.root / ".stop"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def current_model(self) -> Path:
        return self.models / "current_model"

    @property
    def ledger(self) -> Path:
        return self.current_model / "ledger"

    @property
    def writer_lock(self) -> Path:
        return self.current_model / ".writer"

    @property
    def versions(self) -> Path:
        return self.models / "backups" / "consolidated"

    @property
    def emergency(self) -> Path:
        return self.models / "backups" / "emergency"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def socket(self) -> Path:
        return self.state / "api.sock"

    @property
    def daemon_file(self) -> Path:
        return self.state / "daemon.json"

    @property
    def daemon_lock(self) -> Path:
        return self.state / "daemon.lock"

    @property
    def intent_file(self) -> Path:
        return self.state / "intent.json"

    @property
    def queue(self) -> Path:
        return self.state / "queue"

    @property
    def history_file(self) -> Path:
        return self.state / "history.db"

    @property
    def status_file(self) -> Path:
        return self.state / "status" / "training_status.json"

    @property
    def validation(self) -> Path:
        return self.state / "data" / "validation"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def incidents(self) -> Path:
        return self.state / "incidents"

    @property
    def trash(self) -> Path:
        return self.state / "trash"

    def prepare(self) -> None:
        """Create the missing folders and check that `state/` is ours alone.

        Raises:
            WorkspaceProblem: a folder cannot be made, or `state/` is a symlink or belongs to
                someone else.
        """
        try:
            self._prepare()
        except OSError as problem:
            raise WorkspaceProblem(
                f"{problem.filename or self.root}: {problem.strerror}",
                "a workspace needs a disk that this user may write to, and its names for folders",
            ) from problem

    def _prepare(self) -> None:
        durable.make_directory(self.state)
        found = self.state.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise WorkspaceProblem(
                f"{self.state} is not a directory of ours",
                f"its owner must be user {os.geteuid()} and it must not be a link",
            )
        self.state.chmod(0o700)
        folders = [self.inbox, self.inbox / "high", self.inbox / "low"]
        folders += [self.models, self.current_model, self.ledger, self.versions]
        folders += [self.queue / name for name in QUEUE_FOLDERS]
        folders += [self.status_file.parent, self.validation, self.cache]
        folders += [self.logs, self.incidents, self.trash]
        for folder in folders:
            durable.make_directory(folder)


def find(explicit: Path | None = None, start: Path | None = None) -> Workspace:
    """The workspace in use: `explicit`, else the environment, else the nearest one upwards.

    Raises:
        WorkspaceProblem: none is there.
    """
    named = explicit or (
        Path(os.environ[ENVIRONMENT_KEY]) if os.environ.get(ENVIRONMENT_KEY) else None
    )
    if named is not None:
        root = named.expanduser().absolute()
        if (root / CONFIG_NAME).is_file():
            return Workspace(root)
        raise WorkspaceProblem(
            f"{root} has no {CONFIG_NAME}, so it is no workspace",
            f"make one with: trainer-tui init {root}",
        )
    here = (start or Path.cwd()).absolute()
    for candidate in (here, *here.parents):
        if (candidate / CONFIG_NAME).is_file():
            return Workspace(candidate)
    raise WorkspaceProblem(
        f"no {CONFIG_NAME} in {here} or above it",
        "make a workspace with: trainer-tui init DIR, or name one with --workspace DIR",
    )
