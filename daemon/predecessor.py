"""The daemon before this one: whether it ended without a goodbye, and what is known of it.

A daemon that ends as asked removes its `state/daemon.json`. One that is still there when the next
daemon comes up was killed, crashed, or went down with the machine: an incident with what is known,
so that whoever comes back after a week reads that it happened.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from trainer_tui.daemon.teller import Teller
from trainer_tui.safety import clock, incidents
from trainer_tui.safety.workspace import Workspace

LAST_WORDS_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Death:
    """`seen_at`: when it last wrote its status. `machine`: the whole machine went down with it."""

    pid: int
    started_at: str
    seen_at: str
    machine: bool
    last_words: str

    @property
    def text(self) -> str:
        when = f" about {_clock_time(self.seen_at)}" if self.seen_at else ""
        if self.machine:
            return f"the machine went down{when} and is back"
        return f"the daemon (pid {self.pid}) was killed or crashed{when}; a new one serves"


def find(workspace: Workspace) -> Death | None:
    """None: there was none, or it ended as asked."""
    try:
        record = json.loads(workspace.daemon_file.read_bytes())
        pid, started_at = int(record["pid"]), str(record["started_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pid == os.getpid():
        return None
    try:
        seen_at = str(json.loads(workspace.status_file.read_bytes())["heartbeat"])
    except (OSError, ValueError, KeyError, TypeError):
        seen_at = ""
    machine = _is_before_boot(seen_at or started_at)
    return Death(pid, started_at, seen_at, machine, _tail(workspace.logs / "daemon.out"))


async def tell(workspace: Workspace, death: Death, teller: Teller) -> None:
    """An event and an incident."""
    name, hint = f"{clock.now_iso()[:19].replace(':', '')}-daemon", _hint(death)
    teller.say("warning", "daemon", death.text, hint=hint, incident=name)
    await asyncio.to_thread(incidents.keep, workspace.incidents / name, _document(death))


def _hint(death: Death) -> str:
    return "" if death.machine else "its last words: state/logs/daemon.out and daemon.log"


def _document(death: Death) -> dict[str, Any]:
    return {
        "at": clock.now_iso(),
        "class": "machine_down" if death.machine else "daemon_died",
        "text": death.text,
        "suggestion": _hint(death),
        "done": "training goes on from the last commit, if it was to run",
        "pid": death.pid,
        "started_at": death.started_at,
        "last_seen_at": death.seen_at or None,
        "last_words": death.last_words,
    }


def _is_before_boot(at: str) -> bool:
    try:
        return datetime.fromisoformat(at).timestamp() < psutil.boot_time()
    except (OSError, RuntimeError, ValueError):  # nothing is known of it
        return False


def _clock_time(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at).astimezone():%b %d %H:%M:%S}"
    except ValueError:
        return at


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LAST_WORDS_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
