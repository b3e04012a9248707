"""Who watches the daemon, watched in return: our watchdog, or systemd.

Invariant: a dead watchdog is replaced within seconds by one that adopts this daemon; systemd's
watchdog hears from us only while the event loop turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

from trainer_tui.daemon.teller import Teller
from trainer_tui.safety import locks, processes
from trainer_tui.safety.workspace import Workspace

LOOK_EVERY_S = 3.0
WATCHDOG_KEY = "TRAINER_TUI_WATCHDOG"  # set by the watchdog for the daemon it starts


def notify_systemd(text: str) -> None:
    """sd_notify(3) without the library; nothing happens outside of a `Type=notify` unit."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(text.encode(), name)


def systemd_interval_s() -> float | None:
    """How often systemd wants to hear from us (half of `WatchdogSec`); None: it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdigit() and int(text) else None


class Guardian:
    """`run` is a task of the daemon."""

    def __init__(self, workspace: Workspace, teller: Teller) -> None:
        self._workspace, self._teller = workspace, teller
        self._started: subprocess.Popen[bytes] | None = None
        self._had_watchdog = WATCHDOG_KEY in os.environ
        self._was_stopped = False

    async def run(self) -> None:
        """Ends by cancellation."""
        interval_s = systemd_interval_s()
        wait_s = min(LOOK_EVERY_S, interval_s) if interval_s else LOOK_EVERY_S
        while True:
            notify_systemd("WATCHDOG=1")
            if self._had_watchdog and (said := await asyncio.to_thread(self._look)):
                self._teller.say("warning", "daemon", said)
            await asyncio.sleep(wait_s)

    def _look(self) -> str:
        """The watchdog holds a lock for life: free means dead. Returns what was done about it."""
        if self._started is not None:
            self._started.poll()  # reap it
        lock = locks.acquire(self._workspace.state / "watchdog.lock")
        if lock is None:
            return self._continue_a_stopped_one()
        lock.release()
        ours = processes.identify(os.getpid())
        if ours is None:
            return ""
        command = [sys.executable, "-P", "-m", "trainer_tui.safety.watchdog"]
        command += ["--workspace", str(self._workspace.root)]
        command += ["--adopt", f"{ours.pid}:{ours.start_ticks}"]
        environment = {k: v for k, v in os.environ.items() if k != processes.RUN_KEY}
        with (self._workspace.logs / "daemon.out").open("ab") as stream:
            self._started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=environment,
            )
        return f"the watchdog was gone: a new one is {self._started.pid}"

    def _continue_a_stopped_one(self) -> str:
        """Found stopped in two looks in a row: a glance of a debugger is left alone."""
        note = locks.owner_note(self._workspace.state / "watchdog.lock")
        try:
            owner = processes.identify(int(json.loads(note)["pid"]))
        except (ValueError, KeyError, TypeError):
            return ""
        stopped = owner is not None and processes.state_of(owner) == "T"
        if owner is not None and stopped and self._was_stopped:
            processes.send(owner, signal.SIGCONT)
            self._was_stopped = False
            return f"the watchdog {owner.pid} was stopped (SIGSTOP) and is continued"
        self._was_stopped = stopped
        return ""
