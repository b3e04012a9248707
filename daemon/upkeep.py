"""What has to be done from time to time: hand-made changes taken over, old things let go.

Limits: the trash of the queue is emptied here; that of versions is theirs.
"""

from __future__ import annotations

import asyncio
import ctypes
from datetime import datetime, timedelta
from pathlib import Path

from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.history import History
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.queue.store import Queue
from trainer_tui.safety import clock, durable
from trainer_tui.safety.workspace import Workspace

RECONCILE_EVERY_S = 20.0
RECONCILE_SHARE = 200  # at most half a percent of the time is spent looking
EXPIRE_EVERY_S = 3600.0
TRASH_GLOBS = ("job.*", "incident.*", "duplicate-of-*")  # the last: files, of earlier releases
INCIDENTS_KEPT = 500
MANY_JOBS = 10_000


class Upkeep:
    """`run` is a task of the daemon."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        desk: Desk,
        history: History,
        teller: Teller,
    ) -> None:
        self._workspace, self._settings = workspace, settings
        self._desk, self._history, self._teller = desk, history, teller
        self._stuck: list[str] = []

    async def run(self) -> None:
        """Ends by cancellation."""
        expired_s = -EXPIRE_EVERY_S
        while True:
            started_s = clock.monotonic_s()
            await self._reconcile()
            took_s = clock.monotonic_s() - started_s
            if started_s - expired_s >= EXPIRE_EVERY_S:
                expired_s = started_s
                await self._let_go()
            await asyncio.sleep(max(RECONCILE_EVERY_S, took_s * RECONCILE_SHARE))

    async def _reconcile(self) -> None:
        found = await self._desk.ask(lambda queue: queue.reconcile())
        if self._desk.counts.get("waiting", 0) > MANY_JOBS:
            # What the look allocated goes back to the system; glibc would keep it for itself.
            await asyncio.to_thread(ctypes.CDLL(None).malloc_trim, 0)
        for finding in found:
            job = finding.job_id or None
            self._teller.say("warning", "queue", finding.text, kind=finding.kind, job=job)

    async def _let_go(self) -> None:
        retention = self._settings.config.retention
        now = datetime.now().astimezone()

        def expire(queue: Queue) -> list[str]:
            return queue.expire(retention, now)

        names = await self._desk.ask(expire)
        if names:
            self._teller.say("info", "upkeep", f"{len(names)} old jobs went to the trash")
        moved = await asyncio.to_thread(_old_incidents_to_trash, self._workspace)
        if moved:
            self._teller.say("info", "upkeep", f"{moved} old incidents went to the trash")
        oldest = now - timedelta(days=retention.trash_days)
        self._tell_stuck(await asyncio.to_thread(_empty_trash, self._workspace.trash, oldest))
        self._history.prune()

    def _tell_stuck(self, stuck: list[str]) -> None:
        """Once, until it is something else: it would be the same every hour."""
        if stuck and stuck != self._stuck:
            more = f" (and {len(stuck) - 1} more)" if len(stuck) > 1 else ""
            text = f"the trash keeps what cannot be deleted: {stuck[0]}{more}"
            hint = f"see to its rights, or delete it: {self._workspace.trash}"
            self._teller.say("warning", "upkeep", text, hint=hint)
        self._stuck = stuck


def _empty_trash(trash: Path, oldest: datetime) -> list[str]:
    """Each entry by itself. Returns a sentence for each that cannot be deleted."""
    stuck = []
    for path in sorted(found for pattern in TRASH_GLOBS for found in trash.glob(pattern)):
        try:
            if path.lstat().st_ctime < oldest.timestamp():  # ctime: when it was renamed to here
                if path.is_dir() and not path.is_symlink():
                    durable.remove_tree(path)
                else:
                    durable.remove_file(path)
        except FileNotFoundError:
            continue  # somebody else deleted it
        except OSError as problem:
            stuck.append(f"{path.name}: {problem.strerror or problem}")
    return stuck


def _old_incidents_to_trash(workspace: Workspace) -> int:
    """All but the newest; their names begin with the time."""
    names = sorted(entry.name for entry in workspace.incidents.iterdir() if entry.is_dir())
    old = names[:-INCIDENTS_KEPT]
    for name in old:
        durable.rename(workspace.incidents / name, workspace.trash / f"incident.{name}")
    return len(old)
