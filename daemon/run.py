"""The daemon's way in and out: arguments, lock, signals, exit code.

Exit 0 is final (asked to end); 3: another daemon owns the workspace; 2: it cannot start as things
are. Anything else is a crash that a watchdog or systemd answers with a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import multiprocessing.resource_tracker
import os
import signal
import sys
from pathlib import Path

import msgspec

from trainer_tui.safety import child, clock, locks, logs, unix_socket, workspace
from trainer_tui.safety.errors import Locked, TrainerTuiError
from trainer_tui.safety.locks import Lock
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
SWITCH_S = 0.001
ENTRY_KEY = "TRAINER_TUI_TRAINER_ENTRY"  # for tests: another module than the engine's


def main(arguments: list[str]) -> int:
    """Run a daemon until it is told to end. Returns the process's exit code."""
    options = _arguments(arguments)
    os.umask(0o077)
    try:
        here = workspace.find(options.workspace)
        here.prepare()
        lock = take_lock(here)
    except TrainerTuiError as problem:
        print(problem, file=sys.stderr)
        return 3 if isinstance(problem, Locked) else 2
    logs.set_up(here.logs, "daemon", console=True)
    logging.getLogger("watchfiles").setLevel(logging.ERROR)
    _dump_stacks_on_request(here)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)  # the loop gets its turn beside a thread that lists the queue
    multiprocessing.resource_tracker.ensure_running()  # outside of any child's tag
    try:
        return _serve(here, lock, options.trainer_entry)
    except TrainerTuiError as problem:
        log.error("%s", problem)
        return 2


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trainer-tui --daemon", description=__doc__)
    parser.add_argument("--workspace", type=Path, default=None)
    entry = os.environ.get(ENTRY_KEY, child.TRAINER_ENTRY)
    parser.add_argument("--trainer-entry", default=entry, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def take_lock(here: Workspace) -> Lock:
    """The lock for life. Raises Locked, naming the owner."""
    lock = locks.acquire(here.daemon_lock)
    if lock is None:
        owner = locks.owner_note(here.daemon_lock) or "an unknown process"
        raise Locked(
            f"another daemon serves {here.root}: {owner}",
            "attach to it with: trainer-tui; end it with: trainer-tui stop --daemon",
        )
    lock.write_owner(f"pid {os.getpid()}, since {clock.now_iso()}")
    return lock


def _dump_stacks_on_request(here: Workspace) -> None:
    stacks = (here.logs / "daemon-stacks.txt").open("a")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)


def run_tag(here: Workspace) -> str:
    """What marks this workspace's processes in their environment."""
    found = here.root.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}"


def _serve(here: Workspace, lock: Lock, entry: str) -> int:
    from trainer_tui.daemon.daemon import Daemon

    daemon = Daemon(here, lock, entry, run_tag(here))
    daemon.prepare()
    listener = unix_socket.listen(here.socket)
    code = 1
    try:
        code = asyncio.run(daemon.run(listener))
        return code
    finally:
        here.socket.unlink(missing_ok=True)
        if code == 0:  # left behind, it says that the end was not meant
            here.daemon_file.unlink(missing_ok=True)


def daemon_record(here: Workspace, version: str, started_at: str) -> bytes:
    """`state/daemon.json`."""
    return msgspec.json.encode(
        {
            "pid": os.getpid(),
            "socket": str(here.socket),
            "version": version,
            "started_at": started_at,
        }
    )
