"""The settings in force, and the edits of `config.toml` that are not in force yet.

Invariant: a broken edit never takes effect (the last good one stays, and why is said); a key that
decides what the model is (`APPROVAL_KEYS`) changes only by an approval, recorded in
`state/approvals.json` with its old and new value; one that the optimizer's state depends on
(`LINEAGE_KEYS`) only where training begins without any. A trainer's settings are frozen at its
start; only live keys reach it while it runs.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from trainer_tui.safety import (
    checkpoints,
    clock,
    config,
    config_edit,
    durable,
    filesystems,
    manifest,
    state_file,
)
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import ConfigProblem, Corrupt, NotFound, Refused
from trainer_tui.safety.state_file import Unusable
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
When = Literal["live", "next_file", "needs_approval", "new_lineage", "restart"]
KEPT_KEYS = config.APPROVAL_KEYS | config.LINEAGE_KEYS
NEXT_TRAINER = ("next_file", "needs_approval", "new_lineage")  # once nothing else is in the way
RESTART_SECTIONS = frozenset({"api"})
SECRET_KEYS = frozenset({"api.token"})
HIDDEN = "…"


class Approval(msgspec.Struct, frozen=True):
    key: str
    old: Any
    new: Any
    by: str
    at: str


class Approvals(msgspec.Struct, frozen=True):
    """`values`: what each guarded key is now. `log`: how it came to be."""

    values: dict[str, Any]
    log: list[Approval] = []


_approvals_decoder = msgspec.json.Decoder(Approvals)


@dataclass(frozen=True, slots=True)
class Pending:
    """An edit that waits. `when`: live ones wait for the trainer's next step only, those of
    `RESTART_SECTIONS` for the daemon's next start."""

    key: str
    old: Any
    new: Any
    when: When

    def as_dict(self) -> dict[str, Any]:
        """For people: what is secret is not shown."""
        old, new = self.old, self.new
        if self.key in SECRET_KEYS:
            old, new = old and HIDDEN, new and HIDDEN
        return {"key": self.key, "old": old, "new": new, "when": self.when}


class Settings:
    """Loaded and written in threads; read on the event loop."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._file = workspace.root / "config.toml"
        self._last_good = workspace.last_good_config
        self._approvals_file = workspace.state / "approvals.json"
        self._stamp: tuple[int, ...] | None = None
        self.problem: str | None = None
        self.found_at_start = ""  # what people should know besides
        self.config = Config()
        self._at_start = self.config
        self.frozen: Config | None = None
        self.approvals = Approvals({})
        self._compared: tuple[tuple[Config, Config, Approvals], bool] | None = None

    @property
    def file(self) -> Path:
        return self._file

    def disk_floor_bytes(self, total_bytes: int) -> int:
        """What has to stay free on a disk of this size."""
        return filesystems.floor_of(self.config.disk)(total_bytes)

    # --- reading ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the file, or fall back to the last good one. Called once, before the loop.

        Raises:
            ConfigProblem: it is broken and there is no good one of before.
        """
        self._stamp = self._look()
        self.config, problem = config.load_or_last_good(self._file, self._last_good)
        if problem is None:
            self._keep_good()
        else:
            self.problem = str(problem)
        self._at_start = self.config
        self._load_approvals()

    def changed_on_disk(self) -> bool:
        """A cheap look; in a thread."""
        return self._look() != self._stamp

    def reload(self) -> str | None:
        """Take the file in again; in a thread. Returns the problem when the edit is refused.

        Raises:
            OSError: this process lacks memory or descriptors; the edit still counts as one.
        """
        stamp = self._look()  # before reading: what is edited meanwhile is another edit
        try:
            self.config = config.load(self._file)
        except ConfigProblem as problem:
            self._stamp, self.problem = stamp, str(problem)
            return self.problem
        self._stamp = stamp  # after reading: where that failed for want of memory, it is done again
        self.problem = None
        self._keep_good()
        return None

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self._file.lstat()
        except FileNotFoundError:
            return None
        rights = found.st_mode, found.st_uid, found.st_gid
        return found.st_ino, found.st_mtime_ns, found.st_size, *rights

    def _keep_good(self) -> None:
        """For a later start. Without it these settings are in force all the same."""
        try:
            data = self._file.read_bytes()
            kept = state_file.read(self._last_good, bytes) if self._last_good.exists() else b""
            if self._last_good.is_dir():
                state_file.set_aside(self._last_good)
            if kept != data:
                durable.replace(self._last_good, data)
        except OSError as problem:
            log.error("config.last_good.toml was not written: %s", problem)

    # --- approvals -------------------------------------------------------------------------------

    def _load_approvals(self) -> None:
        values = {key: _value(self.config, key) for key in sorted(KEPT_KEYS)}
        try:
            found = state_file.read(self._approvals_file, _approvals_decoder.decode)
        except FileNotFoundError:
            self._save_approvals(Approvals(values))
            return
        if isinstance(found, Unusable):
            aside = state_file.set_aside(self._approvals_file)
            self.found_at_start = f"{found.text}{aside}: what config.toml says is approved"
            log.error("%s", self.found_at_start)
            self._save_approvals(Approvals(values))
            return
        self.approvals = Approvals({**values, **found.values}, found.log)

    def _save_approvals(self, approvals: Approvals) -> None:
        durable.replace(self._approvals_file, msgspec.json.encode(approvals))
        self.approvals = approvals

    def approve(self, key: str, by: str) -> Approval:
        """Let a guarded key take its edited value from the next trainer on; in a thread.

        Raises:
            NotFound: it is no guarded key.
            Refused: it has not been edited.
        """
        if key in config.LINEAGE_KEYS:
            hint = "trainer-tui versions restore vNNN --weights-only begins one"
            raise Refused(f"{key} acts only where a new lineage begins without optimizer", hint)
        if key not in config.APPROVAL_KEYS:
            raise NotFound(f"{key} needs no approval", ", ".join(sorted(config.APPROVAL_KEYS)))
        old, new = self.approvals.values.get(key), _value(self.config, key)
        if old == new:
            raise Refused(f"{key} is {old!r} already; nothing waits for an approval")
        approval = Approval(key, old, new, by, clock.now_iso())
        values = {**self.approvals.values, key: new}
        self._save_approvals(Approvals(values, [*self.approvals.log, approval]))
        return approval

    def in_force(self) -> Config:
        """What a trainer started now would get: the file, guarded keys as approved."""
        return self.config.model_copy(update=self.approvals.values)

    async def look_again(self) -> None:
        """Take in an edit that nobody has noticed yet."""
        if await asyncio.to_thread(self.changed_on_disk):
            await asyncio.to_thread(self.reload)

    async def freeze(self) -> Config:
        """The settings of the trainer that starts now."""
        await self.look_again()
        await asyncio.to_thread(self._begin_lineage)
        self.frozen = self.in_force()
        return self.frozen

    def _begin_lineage(self) -> None:
        """Where the next trainer takes no optimizer over, its keys are as the file says."""
        edited = {key: _value(self.config, key) for key in sorted(config.LINEAGE_KEYS)}
        kept = {key: self.approvals.values.get(key) for key in edited}
        if edited == kept or not self._without_optimizer():
            return
        now = clock.now_iso()
        changed = [key for key in edited if edited[key] != kept[key]]
        log = [Approval(key, kept[key], edited[key], "a new lineage", now) for key in changed]
        values = {**self.approvals.values, **edited}
        self._save_approvals(Approvals(values, [*self.approvals.log, *log]))

    def _without_optimizer(self) -> bool:
        folders = checkpoints.list_folders(self._workspace.current_model)
        try:
            return not folders or manifest.read(folders[0]).weights_only
        except Corrupt:
            return False  # the trainer finds one that is whole, with its optimizer

    # --- edits -----------------------------------------------------------------------------------

    def pending(self) -> list[Pending]:
        """Edits that are not in force yet, in the order of the schema."""
        base = self.frozen or self.in_force()
        found = []
        for key in _flat_keys():
            edited = _value(self.config, key)
            if key in KEPT_KEYS:
                now = self.approvals.values.get(key)
                if now != edited:
                    found.append(Pending(key, now, edited, _when(key)))
                    continue
            if _when(key) == "restart":
                now = _value(self._at_start, key)
                if now != edited:
                    found.append(Pending(key, now, edited, "restart"))
                continue
            now = _value(base, key)
            if now != edited and _when(key) in NEXT_TRAINER:
                found.append(Pending(key, now, edited, "next_file"))
        return found

    def needs_new_trainer(self) -> bool:
        """Whether a running trainer's frozen settings are out of date. Cheap when asked again."""
        if self.frozen is None:
            return False
        asked = (self.frozen, self.config, self.approvals)
        if self._compared is None or list(map(id, asked)) != list(map(id, self._compared[0])):
            wanted = self.in_force()
            outdated = any(
                _value(self.frozen, key) != _value(wanted, key)
                for key in _flat_keys()
                if _when(key) in NEXT_TRAINER
            )
            self._compared = asked, outdated
        return self._compared[1]

    def new_trainer_would_differ(self) -> bool:
        """Whether one started now, perhaps on a new lineage, would get other settings than the one
        that runs."""
        lineage = any(pending.when == "new_lineage" for pending in self.pending())
        return lineage or self.needs_new_trainer()

    def live_changes(self) -> dict[str, Any]:
        """Live keys whose value differs from the running trainer's; they count as told."""
        if self.frozen is None:
            return {}
        changed = {
            key: getattr(self.config, key)
            for key in sorted(config.LIVE_KEYS)
            if getattr(self.config, key) != getattr(self.frozen, key)
        }
        self.frozen = self.frozen.model_copy(update=changed)
        return changed

    def set_values(self, values: dict[str, Any]) -> None:
        """Write keys into `config.toml`, comments kept; in a thread. Raises ConfigProblem."""
        config_edit.set_values(self._file, values)
        self.reload()


def _flat_keys() -> list[str]:
    return [key for key in config.known_keys() if key not in config.ALIASES]


def _value(settings: Config, key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _when(key: str) -> When:
    section, _, _ = key.rpartition(".")
    if key in config.LIVE_KEYS or section in config.LIVE_SECTIONS:
        return "live"
    if key in config.APPROVAL_KEYS:
        return "needs_approval"
    if key in config.LINEAGE_KEYS:
        return "new_lineage"
    return "restart" if section in RESTART_SECTIONS else "next_file"
