"""The screen in a real terminal (tmux at 80x24), by real keys, against the real daemon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from person import COMMAND, Person

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


class Terminal:
    """One tmux server of its own, 80x24, so that nobody's tmux is disturbed."""

    def __init__(self, folder: Path) -> None:
        self._name = f"trainer-tui-{uuid.uuid4().hex[:8]}"
        self._folder = folder

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._name, "-f", "/dev/null", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    def opens(self, *command: str) -> None:
        shell = "env PS1='$ ' sh"
        self.tmux("new-session", "-d", "-x", "80", "-y", "24", "-c", str(self._folder), shell)
        self.types(" ".join(command))
        self.keys("Enter")

    def keys(self, *names: str) -> None:
        self.tmux("send-keys", *names)

    def types(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def shows(self) -> str:
        return self.tmux("capture-pane", "-p")

    def row_of(self, text: str) -> int:
        """The row, from 1, in which it stands; 0: in none."""
        lines = self.shows().splitlines()
        return next((row for row, line in enumerate(lines, 1) if text in line), 0)

    def closes(self) -> None:
        self.tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    yield found
    found.closes()


@pytest.mark.timeout(600)
def test_attach_pause_survive_a_killed_daemon_drag_detach_and_come_back(
    person: Person, chats: dict[str, bytes], terminal: Terminal
) -> None:
    person.types("config", "set", "epochs", "100")
    person.drops("lessons.jsonl", chats["conversations.jsonl"])
    terminal.opens(COMMAND, "-w", str(person.root))
    person.waits(lambda: "TRAINING" in terminal.shows(), 60)
    person.waits(lambda: "lessons.jsonl" in terminal.shows())
    assert all(len(line) <= 80 for line in terminal.shows().splitlines())

    terminal.keys("p")
    person.waits(lambda: "PAUSED" in terminal.shows(), 30)
    assert person.status()["training"]["intent"]["training"] == "pause"
    terminal.keys("p")
    person.waits(lambda: person.status()["training"]["state"] == "training", 30)

    os.kill(person.daemon_pid(), signal.SIGKILL)
    person.waits(lambda: person.types("status", check=False).returncode == 0)
    person.waits(lambda: "live" in terminal.shows() and "TRAINING" in terminal.shows(), 60)

    # Two more files; the second is dragged over the first: press, move with the button, release.
    for name in ("second.jsonl", "third.jsonl"):
        person.drops(
            name, b"".join(chats["conversations.jsonl"].splitlines(True)[: 30 + len(name)])
        )
        person.waits(lambda name=name: name in terminal.shows(), 60)
    assert waiting(person) == ["second.jsonl", "third.jsonl"]
    row = person.waits(lambda: terminal.row_of("third.jsonl"))
    target = terminal.row_of("second.jsonl")
    terminal.types(f"\x1b[<0;6;{row}M\x1b[<32;6;{target}M")
    person.waits(lambda: "━━ #" in terminal.shows(), 30)
    terminal.types(f"\x1b[<0;6;{target}m")
    person.waits(lambda: waiting(person) == ["third.jsonl", "second.jsonl"], 30)
    person.waits(lambda: terminal.row_of("third.jsonl") < terminal.row_of("second.jsonl"), 30)

    step = person.status()["training"]["global_step"]
    terminal.keys("q")
    person.waits(lambda: "training goes on" in terminal.shows(), 30)
    person.waits(lambda: person.status()["training"]["global_step"] > step, 60)

    terminal.types("clear")
    terminal.keys("Enter")
    terminal.types(f"{COMMAND} -w {person.root}")
    terminal.keys("Enter")
    person.waits(lambda: "TRAINING" in terminal.shows() and "live" in terminal.shows(), 60)
    person.waits(lambda: terminal.row_of("third.jsonl") < terminal.row_of("second.jsonl"), 30)
    terminal.keys("u")  # kept by the daemon, so also after coming back
    person.waits(lambda: waiting(person) == ["second.jsonl", "third.jsonl"], 30)


def waiting(person: Person) -> list[str]:
    """Names in training order."""
    listed = person.reads("queue", "list")["jobs"]
    return [job["name"] for job in listed if job["state"] == "waiting"]
