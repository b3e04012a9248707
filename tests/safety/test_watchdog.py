"""The watchdog with a stand-in daemon: a real process that binds the real socket, dies, hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import processes
from trainer_tui.safety.processes import ProcessId

STAND_IN = """
import json, os, signal, socket, sys, time
root = sys.argv[1]
with open(root + "/state/starts", "a") as f:
    f.write(json.dumps({"pid": os.getpid(), "ppid": os.getppid()}) + "\\n")
signal.signal(signal.SIGTERM, lambda *a: os._exit(0))
signal.signal(signal.SIGUSR1, lambda *a: open(root + "/state/dumped", "w").close())
path = root + "/state/api.sock"
if os.path.exists(path): os.unlink(path)
s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(8)
code = open(root + "/state/exit_with").read() if os.path.exists(root + "/state/exit_with") else ""
if code: sys.exit(int(code))
while True:
    c, _ = s.accept(); c.recv(4096); open(root + "/state/pinged", "w").close()
    try: c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    except OSError: pass  # the asker gave up meanwhile
    c.close()
"""

RUNNER = """
import sys, pathlib
from trainer_tui.safety import watchdog
watchdog.PING_INTERVAL_S = 0.1; watchdog.SILENT_LIMIT_S = 4.0; watchdog.DUMP_BEFORE_S = 1.0
watchdog.grace.GRACE_S = 0.5
watchdog.PING_TIMEOUT_S = 0.3; watchdog.OWN_GAP_S = 4.0
real = watchdog.Watchdog
def make(root, command, tag):
    return real(root, [sys.executable, "-c", pathlib.Path(sys.argv[3]).read_text(), str(root)], tag)
watchdog.Watchdog = make
sys.exit(watchdog.main(sys.argv[4:] + ["--workspace", sys.argv[2]]))
"""


def wait_for(
    what: Callable[[], object], limit_s: float = 30.0, told: Callable[[], str] = str
) -> object:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what} {told()}")


class Pack:
    """A watchdog process over a stand-in daemon in `root`."""

    def __init__(
        self, root: Path, *more: str, stand_in: str = STAND_IN, runner: str = RUNNER
    ) -> None:
        self.root = root
        (root / "state" / "logs").mkdir(parents=True, exist_ok=True)
        script = root / "stand_in.py"
        script.write_text(stand_in)
        self.process = subprocess.Popen(
            [sys.executable, "-c", runner, "-", str(root), str(script), *more],
            stdout=subprocess.PIPE,
            text=True,
        )

    def starts(self) -> list[dict[str, int]]:
        file = self.root / "state" / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def daemon(self, number: int = 1) -> int:
        wait_for(lambda: len(self.starts()) >= number)
        wait_for(lambda: (self.root / "state" / "api.sock").exists())
        return self.starts()[number - 1]["pid"]

    def log(self) -> str:
        return (self.root / "state" / "logs" / "watchdog.log").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in processes.tagged(processes.workspace_tag(tmp_path)):
        processes.send(process, signal.SIGKILL)


def test_a_killed_daemon_is_back_within_seconds(root: Path) -> None:
    pack = Pack(root)
    os.kill(pack.daemon(1), signal.SIGKILL)
    second = pack.daemon(2)
    assert processes.identify(second) is not None
    pack.process.terminate()
    assert pack.process.wait(10) == 0
    assert processes.identify(second) is None


def test_exit_zero_is_final(root: Path) -> None:
    pack = Pack(root)
    os.kill(pack.daemon(1), signal.SIGTERM)  # the stand-in exits 0, as a daemon told to stop does
    assert pack.process.wait(10) == 0
    assert len(pack.starts()) == 1


def test_a_daemon_comes_back_though_its_log_folder_is_gone(root: Path) -> None:
    pack = Pack(root)
    first = pack.daemon(1)
    shutil.rmtree(root / "state" / "logs")
    os.kill(first, signal.SIGKILL)
    pack.daemon(2)
    assert (root / "state" / "logs" / "daemon.out").exists()
    pack.process.terminate()
    assert pack.process.wait(10) == 0


def test_a_daemon_comes_back_though_its_words_cannot_be_kept(root: Path) -> None:
    (root / "state" / "logs" / "daemon.out").mkdir(parents=True)  # nobody can open that
    pack = Pack(root)
    pack.daemon(1)
    assert "output is lost" in pack.log()
    pack.process.terminate()
    assert pack.process.wait(10) == 0


NO_PROGRAM = RUNNER.replace("[sys.executable,", '[str(root / "program"),')


def test_a_start_that_the_machine_refuses_is_tried_again(root: Path) -> None:
    """No process, no memory, a disk that is away: each is an OSError of the start."""
    pack = Pack(root, runner=NO_PROGRAM)
    wait_for(lambda: (root / "state" / "logs" / "watchdog.log").exists())
    wait_for(lambda: pack.log().count("no daemon could be started") == 2)
    (root / "program").symlink_to(sys.executable)
    pack.daemon(1)
    pack.process.terminate()
    assert pack.process.wait(10) == 0


LACKING = RUNNER.replace(
    "real = watchdog.Watchdog",
    """
import os, resource, select
watchdog.BACKOFF_S = (0.1,)
lack = pathlib.Path(sys.argv[2]) / "state" / "lack"
usual = resource.getrlimit(resource.RLIMIT_NOFILE)
def limit(fewest):
    left = max(map(int, os.listdir("/proc/self/fd"))) if fewest else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (left if fewest else usual[0], usual[1]))
WHERE
real = watchdog.Watchdog
""",
)
AT_THE_START = """
start = watchdog.Watchdog._start
def _start(self):
    limit(lack.exists())
    try: return start(self)
    finally:
        limit(False)
        if lack.exists(): lack.unlink(); (lack.parent / "lacked").touch()
watchdog.Watchdog._start = _start
"""
IN_THE_WATCH = """
identify, sleep = watchdog.processes.identify, watchdog.Watchdog._sleep
def lacking(pid):
    limit(lack.exists())
    return identify(pid)
def _sleep(self, seconds, watched=None):
    sleep(self, seconds, watched)
    limit(False)
    if lack.exists(): (lack.parent / "lacked").touch()
    limit(lack.exists())
watchdog.processes.identify, watchdog.Watchdog._sleep = lacking, _sleep
"""


def test_a_start_without_descriptors_is_tried_again(root: Path) -> None:
    (root / "state").mkdir()
    (root / "state" / "lack").touch()
    pack = Pack(root, runner=LACKING.replace("WHERE", AT_THE_START))
    pack.daemon(1)
    assert (root / "state" / "lacked").exists()
    pack.process.terminate()
    assert pack.process.wait(10) == 0


def test_a_daemon_started_with_the_last_descriptors_is_watched_and_told_to_end(root: Path) -> None:
    (root / "state").mkdir()
    (root / "state" / "lack").touch()
    pack = Pack(root, runner=LACKING.replace("WHERE", IN_THE_WATCH))
    first = pack.daemon(1)
    wait_for((root / "state" / "lacked").exists)
    pack.process.terminate()
    (root / "state" / "lack").unlink()
    assert pack.process.wait(20) == 0
    assert processes.identify(first) is None and len(pack.starts()) == 1


def test_a_removed_workspace_needs_no_watchdog(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    pack = Pack(root)
    daemon = pack.daemon(1)
    shutil.rmtree(root)
    os.kill(daemon, signal.SIGKILL)
    assert pack.process.wait(10) == 1


SLOW = STAND_IN.replace(
    "lambda *a: os._exit(0)", 'lambda *a: open(root + "/state/asked", "a").write("x") and None'
)


def test_a_request_to_end_is_passed_on_once_and_the_daemon_may_take_its_time(root: Path) -> None:
    """A second one hurries the daemon, a third ends the trainer before it has committed."""
    pack = Pack(root, stand_in=SLOW)
    daemon = pack.daemon(1)
    asked = root / "state" / "asked"
    pack.process.terminate()
    wait_for(asked.exists)
    (root / "state" / "pinged").unlink(missing_ok=True)
    for _ in range(5):  # the watchdog goes round and round meanwhile
        wait_for((root / "state" / "pinged").exists)
        (root / "state" / "pinged").unlink()
    assert asked.read_text() == "x"
    pack.process.terminate()
    wait_for(lambda: asked.read_text() == "xx")
    os.kill(daemon, signal.SIGKILL)
    assert pack.process.wait(10) == 0
    assert len(pack.starts()) == 1


def test_a_daemon_that_refuses_to_start_is_not_started_for_ever(root: Path) -> None:
    (root / "state").mkdir()
    (root / "state" / "exit_with").write_text("2")
    pack = Pack(root)
    assert pack.process.wait(10) == 2
    assert len(pack.starts()) == 1


def test_a_silent_daemon_is_continued_first_then_replaced_after_a_stack_dump(root: Path) -> None:
    pack = Pack(root)
    first = pack.daemon(1)
    wait_for(lambda: (root / "state" / "pinged").exists())  # silence counts from the last answer
    os.kill(first, signal.SIGSTOP)
    wait_for(lambda: "SIGCONT" in pack.log())
    assert len(pack.starts()) == 1
    wait_for(lambda: processes.state_of(ProcessId(first, _ticks(first))) in ("S", "R"))
    # Deaf for good: something else took the name of the socket.
    (root / "state" / "api.sock").unlink()
    wait_for(lambda: (root / "state" / "dumped").exists())
    assert pack.daemon(2) != first
    assert "stack dump" in pack.log()
    pack.process.terminate()
    pack.process.wait(10)


def test_a_machine_that_stood_still_costs_no_daemon(root: Path) -> None:
    """Watchdog and daemon are stopped for longer than silence is borne; the daemon wakes last."""
    pack = Pack(root)
    first = pack.daemon(1)
    wait_for(lambda: (root / "state" / "pinged").exists())
    for pid in (pack.process.pid, first):
        os.kill(pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    wait_for(lambda: time.monotonic() - stopped_s > 5.5)  # the limit is 4 s
    (root / "state" / "pinged").unlink()
    os.kill(pack.process.pid, signal.SIGCONT)
    wait_for(lambda: "stood still" in pack.log(), told=pack.log)
    os.kill(first, signal.SIGCONT)
    wait_for(lambda: (root / "state" / "pinged").exists())
    assert len(pack.starts()) == 1 and "SIGKILL" not in pack.log()
    pack.process.terminate()
    assert pack.process.wait(10) == 0


def _ticks(pid: int) -> int:
    process = processes.identify(pid)
    assert process is not None
    return process.start_ticks


def test_two_watchdogs_at_once_are_one(root: Path) -> None:
    first = Pack(root)
    first.daemon(1)
    second = Pack(root)
    assert second.process.wait(10) == 3
    assert len(first.starts()) == 1
    first.process.terminate()
    first.process.wait(10)


def test_a_new_watchdog_adopts_a_daemon_and_restarts_it_after_a_crash(root: Path) -> None:
    first = Pack(root)
    daemon = first.daemon(1)
    first.process.kill()
    first.process.wait(10)
    (root / "state" / "daemon.json").write_text("{}")
    second = Pack(root, "--adopt", f"{daemon}:{_ticks(daemon)}")
    wait_for(lambda: "adopted" in second.log())
    assert len(first.starts()) == 1
    os.kill(daemon, signal.SIGKILL)
    second.daemon(2)
    second.process.terminate()
    second.process.wait(10)


def test_orphans_of_a_dead_daemon_get_time_and_then_end(root: Path) -> None:
    pack = Pack(root)
    daemon = pack.daemon(1)
    tag = processes.workspace_tag(root)
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, processes.RUN_KEY: tag})
    os.kill(daemon, signal.SIGKILL)
    assert child.wait(15) == -signal.SIGKILL
    assert "orphan" in pack.log()
    pack.process.terminate()
    pack.process.wait(10)


def test_the_watchdog_stays_small(root: Path) -> None:
    pack = Pack(root)
    pack.daemon(1)
    status = Path(f"/proc/{pack.process.pid}/status").read_text()
    kilobytes = int(
        next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    )
    assert kilobytes < 25 * 1024
    pack.process.terminate()
    pack.process.wait(10)


def test_a_tag_is_not_taken_for_a_longer_one():
    """Inode 12 of one workspace is the beginning of inode 123 of another."""
    started = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, processes.RUN_KEY: tag})
        for tag in ("fe-12", "fe-12:run", "fe-12/intake", "fe-123", "fe-123:run")
    ]
    try:
        pids = [process.pid for process in started]
        wait_for(lambda: len(processes.tagged("fe-123")) == 2)
        wait_for(lambda: len(processes.tagged("fe-12")) == 3)
        assert {found.pid for found in processes.tagged("fe-12")} == set(pids[:3])
        assert {found.pid for found in processes.tagged("fe-12:")} == {pids[1]}
    finally:
        for process in started:
            process.kill()
            process.wait()
