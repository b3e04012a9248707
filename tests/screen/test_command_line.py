"""`status`, `plot` and `watch` as a script runs them: processes, pipes, a fake daemon."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).parent / "trainer-tui")
BOUND_S = 0.3


@pytest.fixture
def daemon(tmp_path: Path, fake: Any) -> Iterator[Any]:
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text("")
    found = fake.FakeServer(tmp_path / "state" / "api.sock").start()
    yield found
    found.stop()


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "-w", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_status_is_quick_and_says_how_it_goes(daemon: Any, tmp_path: Path) -> None:
    times: list[float] = []
    while len(times) < 3 or (min(times) >= 5 * BOUND_S and len(times) < 9):
        at_s = time.monotonic()
        done = run(tmp_path, "status")
        times.append(time.monotonic() - at_s)
        assert done.returncode == 0 and "TRAINING" in done.stdout and "support.jsonl" in done.stdout
    assert min(times) < 5 * BOUND_S, f"{times}: a gross regression; docs/screen.md has the figure"


def test_plot_draws_into_a_pipe(daemon: Any, tmp_path: Path) -> None:
    done = run(tmp_path, "plot", "loss", "--width", "60", "--height", "12")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.rstrip("\n").splitlines()) == 12 and "\x1b" not in done.stdout
    assert any("\u2801" <= char <= "\u28ff" for char in done.stdout), "the curve"


def test_watch_plain_says_each_change_once(daemon: Any, tmp_path: Path) -> None:
    command = [COMMAND, "-w", str(tmp_path), "watch", "--plain"]
    told: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None

        def until(words: str) -> None:
            end_s = time.monotonic() + 40
            while not any(words in line for line in told):
                assert time.monotonic() < end_s, f"never: {words}: {told}"
                if select.select([watching.stdout], [], [], 0.2)[0]:
                    told.append(watching.stdout.readline())

        try:
            until("training: training")
            daemon.state.said("warning", "gradient", "gradient spike \x1b[31m")
            until("gradient spike")
            daemon.state.state, daemon.state.reason = "paused", "asked by ada"
            until("training: paused: asked by ada")
        finally:
            watching.kill()
    assert "\x1b" not in "".join(told)
    assert sum("gradient spike" in line for line in told) == 1
