"""Eight processes change one queue at once, through the API of a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Harness, make_workspace, plant, wait_for

CLIENTS, TURNS, JOBS = 8, 10, 6
PRIORITIES = ("high", "normal", "low")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    workspace = make_workspace(tmp_path_factory.mktemp("race") / "ws")
    for number in range(JOBS):
        plant(workspace, f"{number}.jsonl", priority="normal")
    intent = {"training": "pause", "by": "test", "at": "", "why": ""}
    (workspace.state / "intent.json").write_text(json.dumps(intent))
    harness = Harness(workspace).start()
    yield harness
    harness.close()


def client(workspace: Path, seed: int) -> None:
    """Change what the listing showed, by its revision; print every change that was answered."""
    import random

    from trainer_tui.safety.workspace import Workspace

    rng, harness = random.Random(seed), Harness(Workspace(workspace))
    print("ready", flush=True)
    sys.stdin.readline()
    done: list[dict[str, Any]] = []
    for _ in range(TURNS):
        seen = harness.get("/v1/jobs?state=waiting")
        job, other = rng.sample([found["id"] for found in seen["jobs"]], 2)
        wish: dict[str, Any] = rng.choice(
            [{"priority": rng.choice(PRIORITIES)}, {"before": other}, {"place": "top"}]
        )
        answer = harness.call("PATCH", f"/v1/jobs/{job}", {**wish, "revision": seen["revision"]})
        assert answer.status in (200, 409), answer
        current = None
        if answer.status == 409:
            current = answer.json["current"]
            assert {"priority", "state"} <= current.keys()
        done.append({"job": job, "wish": wish, "status": answer.status, "seen": seen})
    print(json.dumps(done), flush=True)


def race(daemon: Harness) -> list[dict[str, Any]]:
    command = (sys.executable, str(Path(__file__)), str(daemon.workspace.root))
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    clients = [
        subprocess.Popen(
            (*command, str(seed)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for seed in range(CLIENTS)
    ]
    for one in clients:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in clients:  # all are up: now they race
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    found: list[dict[str, Any]] = []
    for one in clients:
        output, _ = one.communicate(timeout=60)
        assert one.returncode == 0
        found += json.loads(output)
    return found


def after(order: list[tuple[int, str]], change: dict[str, Any]) -> list[tuple[int, str]] | None:
    """The order after a move; None for a priority, which keeps a place that only positions tell."""
    job, wish = change["job"], change["wish"]
    left = [one for one in order if one[0] != job]
    priority = next(name for one, name in order if one == job)
    if "before" in wish:
        at = next(index for index, one in enumerate(left) if one[0] == wish["before"])
        return [*left[:at], (job, left[at][1]), *left[at:]]
    if wish.get("place") == "top":
        rank = PRIORITIES.index(priority)
        at = sum(PRIORITIES.index(name) < rank for _, name in left)
        return [*left[:at], (job, priority), *left[at:]]
    return None


def order_of(jobs: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(job["id"], job["priority"]) for job in jobs]


def priority_after(change: dict[str, Any]) -> tuple[str, str]:
    """A changed job's priority as its sender saw it, and as the change left it."""
    seen = {job["id"]: job["priority"] for job in change["seen"]["jobs"]}
    before, wish = seen[change["job"]], change["wish"]
    return before, wish.get("priority") or seen.get(wish.get("before"), before)


def test_racing_clients_end_in_one_order_that_every_answer_fits(daemon: Harness) -> None:
    """Linearizable: the changes of each job, in the order of what they were based on, are one
    chain: each began with what the one before had left, and the last left what is there."""
    changes = race(daemon)
    made = [change for change in changes if change["status"] == 200]
    assert made and len(made) < len(changes), "a race that nobody lost proves nothing"
    last = daemon.get("/v1/jobs?state=waiting")
    jobs = last["jobs"]
    for job in jobs:
        # What leaves the priority as it is may have come at any moment in which it was so.
        chain = [
            (change["seen"]["revision"], saw, left)
            for change in made
            if change["job"] == job["id"]
            for saw, left in [priority_after(change)]
            if left != saw
        ]
        now = "normal"
        for _, saw, left in sorted(chain):
            assert saw == now, (job["id"], chain)
            now = left
        assert job["priority"] == now
    assert sorted(job["id"] for job in jobs) == list(range(1, JOBS + 1))
    assert [job["place"] for job in jobs] == list(range(1, JOBS + 1))
    ranks = [PRIORITIES.index(job["priority"]) for job in jobs]
    assert ranks == sorted(ranks)
    on_disk = [
        (int(path.name.split("-")[1]), folder)
        for folder in PRIORITIES
        for path in sorted((daemon.workspace.queue / folder).iterdir())
    ]
    assert on_disk == order_of(jobs)


def test_of_eight_who_saw_the_same_only_one_wins_and_the_order_is_as_it_wished(
    daemon: Harness,
) -> None:
    for _ in range(5):
        seen = daemon.get("/v1/jobs?state=waiting")
        job = seen["jobs"][-1]["id"]
        wishes = [{"before": other["id"]} for other in seen["jobs"][:-1]]
        wishes += [
            {"priority": name} for name in PRIORITIES if name != seen["jobs"][-1]["priority"]
        ]
        answers = at_once(daemon, job, seen["revision"], wishes)
        won = [wish for wish, status in answers if status == 200]
        assert len(won) == 1 and all(status == 409 for wish, status in answers if wish not in won)
        now = order_of(daemon.get("/v1/jobs?state=waiting")["jobs"])
        expected = after(order_of(seen["jobs"]), {"job": job, "wish": won[0]})
        if expected is not None:
            assert now == expected
        else:
            assert dict(now)[job] == won[0]["priority"]


def at_once(
    daemon: Harness, job: int, revision: int, wishes: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], int]]:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together = Barrier(len(wishes))

    def ask(wish: dict[str, Any]) -> tuple[dict[str, Any], int]:
        together.wait()
        body = {**wish, "revision": revision}
        return wish, daemon.call("PATCH", f"/v1/jobs/{job}", body).status

    with ThreadPoolExecutor(len(wishes)) as threads:
        return list(threads.map(ask, wishes))


def test_a_time_is_set_and_lifted_from_the_command_line(daemon: Harness) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "trainer_tui.tui.cli")
        return subprocess.run(
            (*command, "-w", str(daemon.workspace.root), "queue", *words),
            capture_output=True,
            text=True,
            check=False,
        )

    tomorrow = (datetime.now() + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    done = run("not-before", "1", tomorrow)
    assert done.returncode == 0, done.stderr
    assert daemon.get("/v1/jobs/1")["why_waiting"] == f"not before {tomorrow.replace('T', ' ')}"
    assert run("not-before", "1", "now").returncode == 0
    assert daemon.get("/v1/jobs/1")["not_before"] is None
    for words, text in ((("not-before", "1", "soon"), "not a time"), (("again", "1"), "waiting")):
        refused = run(*words)
        assert refused.returncode == 1 and text in refused.stderr
    daemon.post("/v1/training/resume")
    wait_for(lambda: daemon.get("/v1/jobs/1")["state"] == "completed")
    assert run("again", "1").returncode == 0
    assert any(job["parent_job"] == 1 for job in daemon.jobs())


if __name__ == "__main__":
    client(Path(sys.argv[1]), int(sys.argv[2]))
