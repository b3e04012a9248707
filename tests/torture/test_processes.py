"""Killed, stopped, starved: watchdog, daemon, trainer and writer, alone and in pairs.

Any one comes back by itself, and so does any pair but watchdog + daemon, within 60 s; those two,
and all four, at the next start. After each: the invariants.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from pathlib import Path

import invariants
import pytest
from daemon_harness import Harness, chat_rows, make_workspace, plant, wait_for
from guarded import ROLES, Guarded, real_workspace

from trainer_tui.daemon import run
from trainer_tui.safety import processes, unix_socket
from trainer_tui.safety.errors import Locked
from trainer_tui.safety.workspace import Workspace

ROWS = 3000
SAVE_STEPS = 20  # of `guarded.SETTINGS`: what may be lost, plus what is being written
ALONE = [(role,) for role in ROLES]
PAIRS = list(itertools.combinations(ROLES, 2))
NEED_A_START = [("watchdog", "daemon"), ROLES]


def at_work(root: Path, base: Path, rows: int = ROWS) -> tuple[Guarded, dict[str, bytes]]:
    """A whole house that trains one long file."""
    house = Guarded(real_workspace(root, base))
    dropped = {"a.jsonl": chat_rows(rows, "a")}
    for name, data in dropped.items():
        house.drop(name, data)
    house.begin()
    try:
        house.at_work()
    except BaseException:
        house.sweep()
        raise
    return house, dropped


def strike(house: Guarded, victims: tuple[str, ...]) -> float:
    """Kill them; return the seconds until all is well again."""
    moment_s = time.time()
    killed = house.send(signal.SIGKILL, *victims)
    if victims in NEED_A_START:
        if victims != ROLES:  # a trainer without a daemon commits and goes
            wait_for(lambda: not house.tagged(), 60, "the trainer ends without a daemon")
        moment_s = time.time()
        house.begin()
    return house.back_after(moment_s, without=killed)


@pytest.mark.end_to_end
@pytest.mark.timeout(1200)
def test_any_one_and_any_pair_come_back_after_sigkill(tmp_path, base, record, torture, rounds):
    every = [*ALONE, *PAIRS, tuple(ROLES)] if torture else [("daemon", "trainer")]
    wanted = every * rounds
    house, dropped = at_work(tmp_path / "ws", base, 12_000 * rounds if torture else 1500)
    try:
        for victims in wanted:
            house.at_work()
            before = house.ask()["global_step"]
            with record.run(f"SIGKILL {' + '.join(victims)}", "sigkill") as seconds:
                seconds.append(strike(house, victims))
                assert house.ask()["global_step"] >= before - 2 * SAVE_STEPS
                invariants.checkpoints_are_sound(house.workspace)
        house.end()
        invariants.check(house.workspace, dropped)
    finally:
        house.sweep()
    invariants.nothing_is_left(house.workspace)


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
def test_a_stopped_process_is_continued_or_replaced(tmp_path, base, record, torture, rounds):
    if not torture:
        pytest.skip("minutes long: make torture")
    house, dropped = at_work(tmp_path / "ws", base, 12_000 * rounds)
    try:
        for role in ROLES * rounds:
            house.at_work()
            with record.run(f"SIGSTOP {role}", "stopped") as seconds:
                moment_s = time.time()
                victim = house.one(role)
                processes.send(victim, signal.SIGSTOP)
                wait_for(lambda v=victim: processes.state_of(v) == "T", 10, f"{role} stands")
                wait_for(lambda v=victim: processes.state_of(v) != "T", 60, f"{role} runs again")
                seconds.append(max(0.0, time.time() - moment_s))
                house.back_after(time.time())
        house.end()
        invariants.check(house.workspace, dropped)
    finally:
        house.sweep()


STILL_S = 30.0  # longer than a silent daemon is borne


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
def test_a_machine_that_stands_still_is_no_false_alarm(tmp_path, base, record, torture, rounds):
    """Everything of ours is stopped and continued, as by a hypervisor or a closed lid."""
    if not torture:
        pytest.skip("minutes long: make torture")
    house, dropped = at_work(tmp_path / "ws", base, 12_000 * rounds)
    try:
        for _ in range(rounds):
            house.at_work()
            before = {role: house.one(role) for role in ROLES}
            with record.run(f"all stopped for {STILL_S:.0f} s", "stands_still") as seconds:
                for role in ROLES:
                    processes.send(before[role], signal.SIGSTOP)
                until_s = time.monotonic() + STILL_S
                wait_for(lambda u=until_s: time.monotonic() > u, STILL_S + 5)
                moment_s = time.time()
                for role in reversed(ROLES):
                    processes.send(before[role], signal.SIGCONT)
                seconds.append(house.back_after(moment_s))
                assert {role: house.one(role) for role in ROLES} == before, "nobody was replaced"
                assert house.ask()["restarts"] == 0
        house.end()
        invariants.check(house.workspace, dropped)
    finally:
        house.sweep()


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
def test_with_64_file_descriptors_it_trains_or_says_why(tmp_path, base, record, torture, rounds):
    if not torture:
        pytest.skip("a start of the real trainer: make torture")
    for number in range(rounds):
        with_few_descriptors(real_workspace(tmp_path / str(number), base), record)


def with_few_descriptors(workspace, record):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    house = Guarded(workspace)
    dropped = {f"{n}.jsonl": chat_rows(20, str(n)) for n in range(3)}
    try:
        with record.run("RLIMIT_NOFILE 64", "file_descriptors") as seconds:
            moment_s = time.time()
            house.begin()
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for name, data in dropped.items():
                house.drop(name, data)
            house.all_done(3, 90)
            seconds.append(time.time() - moment_s)
            house.end()
            invariants.check(workspace, dropped)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        house.sweep()


def contender(root: Path, gate: int, hold: int, result: int) -> None:
    """What a starting daemon does to become the one: the lock for life, then the socket."""
    os.read(gate, 1)  # until all stand ready
    try:
        lock = run.take_lock(Workspace(root))
        unix_socket.listen(Workspace(root).socket).close()
        os.write(result, b"w" if lock.still_ours() else b"?")
        os.read(hold, 1)  # keeps it until everyone has tried: then the pipe is closed
    except Locked:
        os.write(result, b"l")
    except BaseException:  # noqa: BLE001 - counted by the parent
        os.write(result, b"e")


def test_of_eight_at_the_lock_exactly_one_wins_fifty_times(tmp_path, record):
    workspace = Workspace(tmp_path)
    workspace.prepare()
    for _ in range(50):
        with record.run("eight at the daemon's lock and socket at once", "fifty_times"):
            (gate, opener), (hold, holder), (results, result) = os.pipe(), os.pipe(), os.pipe()
            children = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    os.close(opener)
                    os.close(holder)
                    contender(tmp_path, gate, hold, result)
                    os._exit(0)
                children.append(pid)
            os.write(opener, b"g" * 8)
            said = b""
            while len(said) < 8:
                said += os.read(results, 8)
            for fd in (opener, gate, hold, holder, results, result):
                os.close(fd)
            for pid in children:
                os.waitpid(pid, 0)
            assert sorted(said) == sorted(b"w" + b"l" * 7), said


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
def test_of_daemons_started_at_once_exactly_one_serves(tmp_path, torture, record):
    for number in range(int(os.environ.get("TORTURE_DAEMONS", "50")) if torture else 1):
        daemon = Harness(make_workspace(tmp_path / str(number)))
        with record.run("two daemons at once", "started_at_once"):
            started = [daemon.launch() for _ in range(2 if torture else 4)]
            losers = wait_for(lambda s=started: ended(s, len(s) - 1), 60, "all but one give up")
            assert {process.returncode for process in losers} == {3}
            [winner] = [process for process in started if process not in losers]
            daemon.process = winner
            wait_for(daemon._answers_or_ended)
            assert daemon.status()["daemon"]["pid"] == winner.pid
            os.kill(winner.pid, signal.SIGTERM)
            assert winner.wait(20) == 0


def ended(started, count):
    found = [process for process in started if process.poll() is not None]
    return found if len(found) == count else None


CLOCK = (
    "import time; real = time.time; shift = [0.0];"
    "time.time = lambda: real() + shift[0];"
    "import signal; jumps = {signal.SIGRTMIN: 86400 * 30, signal.SIGRTMIN + 1: -86400 * 30};"
    "[signal.signal(n, lambda *_, by=by: shift.__setitem__(0, shift[0] + by))"
    " for n, by in jumps.items()]"
)


@pytest.mark.end_to_end
def test_a_jump_of_the_clock_stops_nothing(tmp_path, record, torture):
    """The daemon takes wall time from `time.time` alone: shifted by a month, forth and back."""
    if not torture:
        pytest.skip("make torture")
    workspace = make_workspace(tmp_path / "ws", steps=10_000, step_s=0.005, save_every=50)
    plant(workspace, "a.jsonl")
    daemon = Harness(workspace)
    daemon.prelude = CLOCK
    daemon.start()
    try:
        wait_for(lambda: daemon.training()["global_step"], 60, "it trains")
        for number in (signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMIN + 1):
            with record.run("clock jumps a month", "clock"):
                before = daemon.training()["global_step"]
                os.kill(daemon.process.pid, number)
                wait_for(lambda b=before: daemon.training()["global_step"] > b + 100, 60)
                assert daemon.training()["restarts"] == 0
                assert not daemon.said("stopped (SIGSTOP)")
        assert daemon.stop() == 0
        invariants.checkpoints_are_sound(workspace)
    finally:
        daemon.close()
