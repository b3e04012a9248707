"""Undo and redo, kept by the daemon in `state/undo/log.json`, so also after a restart.

Invariant: an entry says how to take an act back and how to do it again, in terms of what is on
disk; one that can no longer be applied is refused with the reason and dropped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from trainer_tui.safety import durable, state_file
from trainer_tui.safety.errors import Refused, is_lack
from trainer_tui.safety.state_file import Unusable
from trainer_tui.safety.workspace import Workspace

DEPTH = 100


class _Act(msgspec.Struct, frozen=True, tag_field="act"):
    pass


class SetIntent(_Act, frozen=True, tag="intent"):
    """`instead_of`: what the act left, so what must still be wished; empty in older logs, whose
    acts went between `run` and `pause` only."""

    training: Literal["run", "pause", "stopped"]
    instead_of: str = ""

    @property
    def expects(self) -> str:
        return self.instead_of or ("pause" if self.training == "run" else "run")


class PlaceJob(_Act, frozen=True, tag="place"):
    """Where a waiting job stood: its priority and position."""

    job_id: int
    priority: str
    position: int


class HoldJob(_Act, frozen=True, tag="hold"):
    job_id: int
    held: bool


class RemoveJob(_Act, frozen=True, tag="remove"):
    job_id: int


class RestoreJob(_Act, frozen=True, tag="restore"):
    job_id: int


Act = SetIntent | PlaceJob | HoldJob | RemoveJob | RestoreJob


class Entry(msgspec.Struct, frozen=True):
    """`by`: who did it. `text`: what, for people."""

    by: str
    text: str
    undo: Act
    redo: Act


class Log(msgspec.Struct, frozen=True):
    done: tuple[Entry, ...] = ()
    undone: tuple[Entry, ...] = ()


_decoder = msgspec.json.Decoder(Log)


class UndoLog:
    """`apply(act, by)` does an act; it raises Refused or NotFound when it cannot."""

    def __init__(self, workspace: Workspace, apply: Callable[[Act, str], Awaitable[None]]) -> None:
        self._file = workspace.state / "undo" / "log.json"
        self._apply = apply
        self._lock = asyncio.Lock()
        self._log = Log()

    def load(self) -> str:
        """A log that cannot be used is an empty one: nothing but convenience is lost.

        Returns:
            What people should know of it; empty when all is well.
        """
        folder, said = self._file.parent, ""
        try:
            if os.path.lexists(folder) and not folder.is_dir():
                said = f"state/undo is no folder{state_file.set_aside(folder)}"
            durable.make_directory(folder)
            found = state_file.read(self._file, _decoder.decode)
        except FileNotFoundError:
            return said
        except OSError as problem:
            if is_lack(problem):
                raise
            return f"what can be undone cannot be kept: {problem}"
        if isinstance(found, Unusable):
            aside = state_file.set_aside(self._file)
            return f"{found.text}{aside}: nothing of before can be undone"
        self._log = found
        return said

    def as_dict(self) -> dict[str, Any]:
        """What would be undone and redone next."""
        done, undone = self._log.done, self._log.undone
        return {
            "undo": {"by": done[-1].by, "text": done[-1].text} if done else None,
            "redo": {"by": undone[-1].by, "text": undone[-1].text} if undone else None,
        }

    async def record(self, by: str, text: str, undo: Act, redo: Act) -> None:
        """An act was done; what was undone before can no longer be redone."""
        async with self._lock:
            done = (*self._log.done, Entry(by, text, undo, redo))[-DEPTH:]
            await self._keep(Log(done, ()))

    async def undo(self, by: str, *, force: bool = False) -> str:
        """Take the last act back and say which it was. Somebody else's only with `force`.

        Raises:
            Refused: there is none, it was another's, or it can no longer be done.
        """
        async with self._lock:
            if not self._log.done:
                raise Refused("there is nothing to undo")
            entry = self._log.done[-1]
            _check_owner(entry, by, "undo", force)
            rest = self._log.done[:-1]
            await self._try(entry.undo, by, Log(rest, self._log.undone))
            await self._keep(Log(rest, (*self._log.undone, entry)[-DEPTH:]))
            return f"undone: {entry.text}"

    async def redo(self, by: str, *, force: bool = False) -> str:
        """Do the last undone act again. Raises as `undo`."""
        async with self._lock:
            if not self._log.undone:
                raise Refused("there is nothing to redo")
            entry = self._log.undone[-1]
            _check_owner(entry, by, "redo", force)
            rest = self._log.undone[:-1]
            await self._try(entry.redo, by, Log(self._log.done, rest))
            await self._keep(Log((*self._log.done, entry)[-DEPTH:], rest))
            return f"done again: {entry.text}"

    async def _try(self, act: Act, by: str, without: Log) -> None:
        try:
            await self._apply(act, by)
        except Refused:
            await self._keep(without)
            raise

    async def _keep(self, log: Log) -> None:
        data = msgspec.json.encode(log)
        await asyncio.to_thread(durable.replace, self._file, data)
        self._log = log


def _check_owner(entry: Entry, by: str, deed: str, force: bool) -> None:
    if entry.by != by and not force:
        raise Refused(
            f"the last change is not yours: {entry.text}, by {entry.by}",
            f"to {deed} it all the same: trainer-tui {deed} --force (API: force = true)",
        )
