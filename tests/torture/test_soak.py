"""The long one: a month's bad luck in minutes, chosen by seeded dice, and nothing is lost.

The dice draw from a deck that holds every kind of fault, shuffled anew when it is used up, so that
eight rounds have seen each kind at least once. The queue never runs dry meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import invariants
import psutil
import pytest
from daemon_harness import chat_rows, wait_for
from guarded import ROLES, Guarded
from test_processes import NEED_A_START, PAIRS, at_work

from trainer_tui.safety import processes

KINDS = ("kill", "kill", "pair", "stop", "rollback", "pause", "version", "config")
ROWS = (2000, 4000)  # of one file
ROWS_A_SECOND = 500  # waiting for each second of a round: more than is learnt in it
MOST_DESCRIPTORS, MOST_WATCHDOG_BYTES = 100, 30 << 20


def one_fault(
    house: Guarded, kind: str, dice: random.Random
) -> tuple[str, list[processes.ProcessId]]:
    """Something bad. Returns its name, and whom it killed."""
    match kind:
        case "kill":
            role = dice.choice(ROLES)
            return f"kill {role}", house.send(signal.SIGKILL, role)
        case "pair":
            victims = dice.choice([pair for pair in PAIRS if pair not in NEED_A_START])
            return f"kill {' + '.join(victims)}", house.send(signal.SIGKILL, *victims)
        case "stop":
            role = dice.choice(ROLES)
            [victim] = house.send(signal.SIGSTOP, role)
            wait_for(lambda: processes.state_of(victim) == "T", 10, f"{role} stands")
            wait_for(lambda: processes.state_of(victim) != "T", 60, f"{role} runs again")
            return f"stop {role}", []
        case "rollback":
            wait_for(lambda: went_back(house), 60, "something to go back from")
        case "pause":
            house.post("/v1/training/pause", {}, timeout_s=90)
            house.post("/v1/training/resume", {}, timeout_s=90)
        case "version":
            house.post("/v1/versions", {"description": "soak"}, timeout_s=90)
        case "config":
            (house.workspace.root / "config.toml").write_text("[[[ half an edit")
    return kind, []


def went_back(house: Guarded) -> bool:
    """Refused while nothing is committed since the newest version."""
    answer = house.call("POST", "/v1/versions/rollback", {}, timeout_s=90)
    assert answer.status in (200, 409), answer
    return answer.status == 200


class Work:
    """Files for the house: as many as keep it busy over the next round."""

    def __init__(self, house: Guarded, dropped: dict[str, bytes], dice: random.Random) -> None:
        self._house, self._dropped, self._dice = house, dropped, dice

    def keep_up(self, wanted_rows: float) -> None:
        waiting = 0.0
        for job in self._house.jobs():
            if job["state"] in ("waiting", "processing"):
                waiting += (job["rows"] or 0) * (1 - (job["fraction"] or 0.0))
        while waiting < wanted_rows:
            name = f"{len(self._dropped)}.jsonl"
            rows = self._dice.randrange(*ROWS)
            self._dropped[name] = chat_rows(rows, name)
            self._house.drop(name, self._dropped[name], self._dice.choice(("", "high", "low")))
            waiting += rows


def shuffled(dice: random.Random, deck: list[str]) -> str:
    if not deck:
        deck += KINDS
        dice.shuffle(deck)
    return deck.pop()


@pytest.mark.end_to_end
@pytest.mark.timeout(36_000)
def test_soak_with_seeded_faults(tmp_path: Path, base, record, torture):
    """`TORTURE_SOAK_S` seconds (default 360), a fault each `TORTURE_EVERY_S` (default 30)."""
    if not torture:
        pytest.skip("minutes long: make torture")
    length_s = float(os.environ.get("TORTURE_SOAK_S", "360"))
    every_s = float(os.environ.get("TORTURE_EVERY_S", "30"))
    seed = int(os.environ.get("TORTURE_SEED", "1"))
    dice, deck = random.Random(seed), list[str]()
    house, dropped = at_work(tmp_path / "ws", base)
    work = Work(house, dropped, dice)
    good = (house.workspace.root / "config.toml").read_text()
    scenario = f"soak, {length_s:.0f} s, a fault every {every_s:.0f} s, seed {seed}"
    started_s, away_s = time.monotonic(), 0.0
    try:
        house.post("/v1/versions", {"description": "to go back to"}, timeout_s=60)
        while time.monotonic() < started_s + length_s:
            work.keep_up(ROWS_A_SECOND * every_s)
            with record.run(scenario, "soak") as took:
                moment_s, fault = time.time(), shuffled(dice, deck)
                print(f"{time.strftime('%X')} {fault}: ", end="", flush=True)
                fault, killed = one_fault(house, fault, dice)
                (house.workspace.root / "config.toml").write_text(good)
                took.append(house.back_after(moment_s, 60, killed))
                away_s += took[-1]
                print(f"{fault}, {took[-1]:.1f} s", flush=True)
            time.sleep(max(0.0, every_s - (time.time() - moment_s)))
        share = 1 - away_s / (time.monotonic() - started_s)
        print(f"{len(dropped)} files, {house.ask()}, training {share:.0%} of the time", flush=True)
        nothing_grew(house)
        house.all_done(len(dropped), 300)
        house.end()
        invariants.check(house.workspace, dropped)
    except AssertionError as problem:
        raise AssertionError(f"seed {seed}: {problem}\n{house.tail()}") from problem
    finally:
        house.sweep()
    invariants.nothing_is_left(house.workspace)


def nothing_grew(house: Guarded) -> None:
    for role in ROLES:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(house.one(role).pid)
            assert process.num_fds() < MOST_DESCRIPTORS, role
    watchdog = psutil.Process(house.one("watchdog").pid)
    assert watchdog.memory_info().rss < MOST_WATCHDOG_BYTES
