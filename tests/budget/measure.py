"""What the screen costs on a pseudo-terminal: bytes, processor, memory, first frame.

`python tests/budget/measure.py [WxH ...] [--seconds N] [--still]` prints a table. The daemon is
the fake one, training at one step in 0.78 s, in a process of its own; the screen is a process as
a person starts it. Bytes are counted at the master side of the terminal.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
FAKE = HERE.parent / "screen" / "fake_daemon.py"
START = (
    "import sys; from pathlib import Path; from trainer_tui.tui.app import run;"
    "sys.exit(run(Path(sys.argv[1]), socket=Path(sys.argv[2])))"
)


@dataclass(frozen=True, slots=True)
class Cost:
    size: str
    first_frame_s: float
    bytes_per_s: float
    cpu_percent: float
    rss_mb: float
    key_p95_ms: float


class Terminal:
    """A process on a pseudo-terminal of a given size; `output` is all it has written."""

    def __init__(
        self, command: list[str], columns: int, rows: int, cwd: Path, *,
        background: bytes = b"rgb:1616/1a1a/2222", environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        mine = {"TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})}
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | mine
        self._background = background
        # An installed program has its byte code; a checkout may be told not to write any.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "screen-byte-code")
        self.cwd = cwd
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.master = master
        self.output = b""

    def read(self, seconds: float, until: bytes | None = None) -> int:
        """Bytes that came within `seconds`, or until `until` was seen; answers DA1 like xterm."""
        end, before = time.monotonic() + seconds, len(self.output)
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                break
            try:
                chunk = os.read(self.master, 65536)
            except OSError:
                break
            self.output += chunk
            if b"\x1b[c" in chunk:
                answer = b"\x1b]11;" + self._background + b"\x1b\\\x1b[?62;22c"
                os.write(self.master, answer)
            if until is not None and until in self.text():
                break
        return len(self.output) - before

    def text(self) -> bytes:
        return re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", self.output)

    def hang_up(self) -> None:
        """The terminal goes away and nobody says so."""
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        if self.master < 0:
            self.process.kill()
            self.process.wait()
            return
        if self.process.poll() is None:
            os.write(self.master, b"q")
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
        os.close(self.master)


def key_to_paint_ms(terminal: Terminal, presses: int = 20) -> float:
    """95th percentile of the time from a key to the first byte that it caused."""
    times = []
    for index in range(presses):
        terminal.read(0.02)
        at_s = time.monotonic()
        os.write(terminal.master, b"j" if index % 4 < 2 else b"k")
        if select.select([terminal.master], [], [], 1.0)[0]:
            times.append(1000 * (time.monotonic() - at_s))
        terminal.read(0.08)
    return sorted(times)[int(len(times) * 0.95)] if times else float("inf")


@contextmanager
def attached(
    columns: int, rows: int, still: bool = False, jobs: int = 0, hurry: int = 0
) -> Iterator[Terminal]:
    """A screen of that size on a terminal of its own, attached to a fake daemon."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "state").mkdir()
        (root / "config.toml").write_text("")
        socket = root / "state" / "api.sock"
        extra = ["--still"] if still else []
        extra += ["--hurry", str(hurry)] if hurry else []
        daemon = subprocess.Popen(
            [sys.executable, str(FAKE), str(socket), "--jobs", str(jobs), *extra]
        )
        try:
            until_s = time.monotonic() + 10
            while not socket.exists() and time.monotonic() < until_s:
                time.sleep(0.01)
            command = [sys.executable, "-c", START, str(root), str(socket)]
            terminal = Terminal(command, columns, rows, root)
            try:
                yield terminal
            finally:
                terminal.close()
        finally:
            daemon.terminate()
            daemon.wait()


def settle(terminal: Terminal, still: bool) -> None:
    """The start is over: silent for a second, or where steps come, for 2.5 s of them."""
    if not still:
        terminal.read(2.5)
        return
    until_s = time.monotonic() + 30
    while terminal.read(1.0):
        if time.monotonic() > until_s:
            raise AssertionError("a screen on which nothing changes was never silent")


def measure(columns: int, rows: int, seconds: float, still: bool, jobs: int = 0) -> Cost:
    """Attach a screen of that size to a fake daemon and watch it for `seconds`."""
    with attached(columns, rows, still, jobs) as terminal:
        terminal.read(10, until=b"support.jsonl")
        first_frame_s = time.monotonic() - terminal.started_s
        settle(terminal, still)
        process = psutil.Process(terminal.process.pid)
        before, at_s = process.cpu_times(), time.monotonic()
        end_s, count = at_s + seconds, 0
        while (left := end_s - time.monotonic()) > 0:
            count += terminal.read(left)
        took_s = time.monotonic() - at_s
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return Cost(
            f"{columns}x{rows}", first_frame_s, count / took_s, 100 * used / took_s,
            process.memory_info().rss / 2**20, 0.0 if still else key_to_paint_ms(terminal),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=["80x24", "120x40", "200x60"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--still", action="store_true", help="nothing changes: must be 0 bytes")
    parser.add_argument("--jobs", type=int, default=0)
    given = parser.parse_args()
    print(f"{'size':<10}{'first frame':>12}{'bytes/s':>10}{'CPU %':>8}{'RSS MB':>8}{'key p95':>9}")
    for size in given.sizes:
        columns, rows = (int(part) for part in size.split("x"))
        cost = measure(columns, rows, given.seconds, given.still, given.jobs)
        print(
            f"{cost.size:<10}{cost.first_frame_s:>11.2f}s{cost.bytes_per_s:>10.0f}"
            f"{cost.cpu_percent:>8.1f}{cost.rss_mb:>8.0f}{cost.key_p95_ms:>7.0f}ms"
        )


if __name__ == "__main__":
    main()
