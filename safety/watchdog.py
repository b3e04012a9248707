"""The parent that is always there: restarts a dead or silent daemon, ends what it left behind.

Used where systemd is not. Standard library only, so that it stays under 20 MB and has nothing to
break. It holds `state/watchdog.lock`; exit 0 of the daemon is final, anything else is a crash to
restart, and so is a start that the machine refuses. A lack of memory or descriptors ends neither
this process nor its watch. A watchdog that died is started again by the
daemon (`--adopt`): it then watches a process that is not its child, and learns from
`state/daemon.json` (removed by a clean exit) whether the end was meant.

Limits: when watchdog and daemon die together nobody is left; the next `trainer-tui` reconciles.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trainer_tui.safety import cgroup, grace, locks, processes, unix_socket
from trainer_tui.safety.grace import Grace
from trainer_tui.safety.processes import ProcessId

PING_INTERVAL_S = 2.0
PING_TIMEOUT_S = 2.0
SILENT_LIMIT_S = 20.0
DUMP_BEFORE_S = 4.0  # stacks are dumped so long before the kill
OWN_GAP_S = 8.0  # between two looks, which are 2 s and a ping apart
START_GRACE_S = 40.0  # no ping is expected before a new daemon's first answer, or this
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CALM_S = 120.0  # a daemon that lived this long starts the back-off anew
FINAL_CODES = (0, 2, 3)  # meant; refused to start and would again; another daemon has the lock
LOG_BYTES = 1 << 20
UNKNOWN_START = 0  # start ticks of a daemon that could not be identified yet
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(slots=True)
class Watched:
    """The daemon of now. `child` is None when it was adopted."""

    process: ProcessId
    child: subprocess.Popen[bytes] | None
    started_s: float
    answered_s: float | None = None
    dumped: bool = False
    looked_s: float | None = None
    told: int = 0  # how many requests to end were passed on


@dataclass(slots=True)
class Watchdog:
    root: Path
    command: list[str]
    run_tag: str
    foreground: bool = False  # the daemon's words go where ours go
    asked: int = 0  # how often we were asked to end
    crashes: int = 0
    orphans: dict[ProcessId, Grace] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def stopping(self) -> bool:
        return self.asked > 0

    # --- one daemon after the other ---------------------------------------------------------

    def run(self, adopted: ProcessId | None) -> int:
        """Watch until an exit that is final. Returns the exit code of the watchdog."""
        watched = self._adopt(adopted) if adopted else self._start()
        while True:
            code = self._watch(watched) if watched else None
            if watched and code in FINAL_CODES:
                self.log(f"daemon {watched.process.pid} exited {code}: final")
                return code
            if self.stopping:
                return 0
            if watched is None and self._workspace_gone():
                return 1
            if watched and time.monotonic() - watched.started_s > CALM_S:
                self.crashes = 0
            pause = BACKOFF_S[min(self.crashes, len(BACKOFF_S) - 1)]
            self.crashes += 1
            ended = f"daemon {watched.process.pid} ended ({code})" if watched else "none started"
            self.log(f"{ended}: a new one in {pause:g} s")
            self._note_orphans()
            self._sleep(pause)
            if self.stopping:
                return 0
            watched = self._start()

    def _start(self) -> Watched | None:
        """None when the machine does not give a process now: that counts as one more crash."""
        environment = {processes.RUN_KEY: self.run_tag, "TRAINER_TUI_WATCHDOG": str(os.getpid())}
        try:
            with contextlib.ExitStack() as stack:
                stream = None if self.foreground else self._output(stack)
                child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=self.root,
                    start_new_session=True,
                    env=os.environ | environment,
                )
        except OSError as problem:  # EAGAIN, ENOMEM, EMFILE, a disk that is away
            self.log(f"no daemon could be started: {problem}")
            return None
        self.log(f"daemon {child.pid} started")
        watched = Watched(ProcessId(child.pid, UNKNOWN_START), child, time.monotonic())
        with contextlib.suppress(OSError):  # it runs, so it is watched; `_see_to` asks again
            self._identify(watched)
        return watched

    def _identify(self, watched: Watched) -> None:
        """Learn when it started. Its pid is not given away before it is reaped, which we do."""
        if watched.process.start_ticks == UNKNOWN_START:
            watched.process = processes.identify(watched.process.pid) or watched.process

    def _output(self, stack: contextlib.ExitStack) -> IO[bytes] | int:
        """Where the daemon's words go. A disk that takes none costs the words, not the daemon."""
        logs = self.state / "logs"
        try:
            if self.state.is_dir():
                logs.mkdir(exist_ok=True, mode=0o700)
            return stack.enter_context((logs / "daemon.out").open("ab"))
        except OSError as problem:
            self.log(f"the daemon's output is lost: {problem}")
            return subprocess.DEVNULL

    def _workspace_gone(self) -> bool:
        """Whether a person removed the whole workspace: then nothing is left to watch."""
        try:
            self.root.stat()
        except FileNotFoundError:
            return True
        except OSError:  # a disk that fails now may come back
            return False
        return False

    def _adopt(self, process: ProcessId) -> Watched:
        self.log(f"daemon {process.pid} adopted")
        return Watched(process, None, time.monotonic())

    def _watch(self, watched: Watched) -> int | None:
        """Until the daemon has ended. Exit code; None: unknown or by signal."""
        while True:
            try:
                code = self._ended(watched)
                if code != "runs":
                    return None if code == "lost" else int(code)
                self._see_to(watched)
            except OSError as problem:  # no memory or descriptor left: the next look has some
                self.log(f"daemon {watched.process.pid} cannot be looked at now: {problem}")
            self._sleep(PING_INTERVAL_S, watched)

    def _see_to(self, watched: Watched) -> None:
        self._identify(watched)
        while watched.told < self.asked:  # each once: a second one hurries the trainer
            processes.send(watched.process, signal.SIGTERM)
            watched.told += 1
        self._ping(watched)
        self._end_orphans()
        self._reap(watched)

    def _ended(self, watched: Watched) -> str:
        if watched.child is not None:
            code = watched.child.poll()
            if code is None:
                return "runs"
            return str(code) if code >= 0 else "lost"
        if processes.alive(watched.process):
            return "runs"
        # Not our child, so its code is unknown: a clean exit removes its own daemon.json.
        return "lost" if (self.state / "daemon.json").exists() else "0"

    # --- silence ----------------------------------------------------------------------------

    def _ping(self, watched: Watched) -> None:
        now = time.monotonic()
        self._forgive(watched, now)
        if answers(self.state / "api.sock", PING_TIMEOUT_S):
            watched.answered_s, watched.dumped = time.monotonic(), False
            return
        since = watched.answered_s or watched.started_s
        limit = SILENT_LIMIT_S if watched.answered_s is not None else START_GRACE_S
        silent_s = now - since
        if silent_s > limit / 2 and processes.state_of(watched.process) == "T":
            self.log(f"daemon {watched.process.pid} is stopped: SIGCONT")
            processes.send(watched.process, signal.SIGCONT)
        if silent_s > limit - DUMP_BEFORE_S and not watched.dumped:
            self.log(f"daemon {watched.process.pid} is silent for {silent_s:.0f} s: stack dump")
            processes.send(watched.process, signal.SIGUSR1)  # faulthandler, into daemon.out
            watched.dumped = True
        if silent_s > limit:
            self.log(f"daemon {watched.process.pid} is silent for {silent_s:.0f} s: SIGKILL")
            processes.send(watched.process, signal.SIGKILL)
            processes.wait_gone(watched.process, 5)

    def _forgive(self, watched: Watched, now_s: float) -> None:
        """Time in which this process itself stood still (a suspended machine, a paused one) is
        not held against the daemon."""
        gap_s = 0.0 if watched.looked_s is None else now_s - watched.looked_s
        watched.looked_s = now_s
        if gap_s > OWN_GAP_S:
            self.log(f"this watchdog stood still for {gap_s:.0f} s: the daemon gets that time, too")
            watched.started_s += gap_s
            if watched.answered_s is not None:
                watched.answered_s += gap_s

    # --- what a dead daemon left ------------------------------------------------------------

    def _note_orphans(self) -> None:
        """Trainers of the last generation get time to commit: as long as bytes move."""
        try:
            found = processes.tagged(self.run_tag)
        except OSError as problem:  # no memory or descriptor left: a new daemon looks for them, too
            self.log(f"what the daemon left behind is not known: {problem}")
            return
        for process in found:
            self.orphans.setdefault(process, Grace(time.monotonic(), grace.GRACE_S))

    def _end_orphans(self) -> None:
        moved = sum(processes.bytes_written(process) for process in self.orphans)
        waits = any(processes.state_of(process) == "D" for process in self.orphans)
        for process, patience in list(self.orphans.items()):
            if not processes.alive(process):
                del self.orphans[process]
            elif patience.over(moved, waits, time.monotonic()):
                self.log(f"orphan {process.pid} neither ends nor writes: SIGKILL")
                cgroup.kill_with(process.pid)
                processes.send(process, signal.SIGKILL)

    def _reap(self, watched: Watched) -> None:
        """Orphans become our children (subreaper): collect the ones that ended.

        The daemon itself is left for `Popen`, which wants its exit code.
        """
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid == watched.process.pid:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)

    def _sleep(self, seconds: float, watched: Watched | None = None) -> None:
        """Wait, but wake at once when the daemon ends or a signal comes."""
        deadline, asked = time.monotonic() + seconds, self.asked
        poller = select.poll()
        with contextlib.ExitStack() as stack:
            fd = None
            with contextlib.suppress(OSError):  # none left: what ended is found after the wait
                fd = stack.enter_context(processes.opened(watched.process)) if watched else None
            if fd is not None:
                poller.register(fd, select.POLLIN)
            while self.asked == asked and (left := deadline - time.monotonic()) > 0:
                if poller.poll(min(left, 0.5) * 1000):
                    return

    def log(self, text: str) -> None:
        """One line in state/logs/watchdog.log; a full disk costs the line, nothing else."""
        file = self.state / "logs" / "watchdog.log"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            if file.exists() and file.stat().st_size > LOG_BYTES:
                file.rename(file.with_suffix(".log.1"))
            with file.open("a") as stream:
                stream.write(f"{stamp} watchdog {os.getpid()}: {text}\n")


def answers(path: Path, timeout_s: float) -> bool:
    """Whether an HTTP server answers anything at all on this socket in time."""
    try:
        with contextlib.closing(unix_socket.connect(path, timeout_s)) as client:
            client.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: watchdog\r\nConnection: close\r\n\r\n")
            return client.recv(1) != b""
    except OSError:  # refused, reset or timed out: no answer
        return False


def become_subreaper() -> None:
    """Orphaned grandchildren become children of this process; prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="trainer-tui-watchdog")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--adopt", default="", help="PID:START of a daemon that runs already")
    parser.add_argument("--foreground", action="store_true", help="show what the daemon says")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    root: Path = options.workspace.absolute()
    (root / "state" / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = locks.acquire(root / "state" / "watchdog.lock")
    if lock is None:
        print(f"another watchdog runs: {locks.owner_note(root / 'state' / 'watchdog.lock')}")
        return 3
    lock.write_owner(json.dumps({"pid": os.getpid()}))
    become_subreaper()
    command = [sys.executable, "-P", "-m", "trainer_tui.daemon", "--workspace", str(root)]
    dog = Watchdog(root, command, processes.workspace_tag(root))
    dog.foreground = options.foreground

    def stop(number: int, frame: object) -> None:
        dog.asked += 1

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    adopted = None
    if options.adopt:
        pid, _, start = options.adopt.partition(":")
        adopted = ProcessId(int(pid), int(start))
    return dog.run(adopted)


if __name__ == "__main__":
    sys.exit(main())
