"""Words on the command line that cannot be meant: a sentence that says what may be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_harness import chat_rows

COMMAND = str(Path(sys.executable).parent / "trainer-tui")


def run(root: Path, *words: str | bytes) -> tuple[int, str]:
    done = subprocess.run(
        [COMMAND, "-w", str(root), *words], capture_output=True, timeout=60, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("state", ["a b", "x&limit=1", "wait", "ä"])
def test_a_state_that_does_not_exist_is_told_from_a_daemon_that_does_not_answer(serve, state):
    daemon = serve().start()
    code, said = run(daemon.workspace.root, "queue", "list", "--state", state)
    assert code == 1, said
    assert "state: it must be 'waiting', 'processing', 'completed' or 'failed'" in said


def test_a_level_that_does_not_exist_is_refused_with_those_that_do(serve):
    daemon = serve().start()
    code, said = run(daemon.workspace.root, "events", "--level", "x")
    assert code == 1, said
    assert "level: it must be 'info', 'warning' or 'error'" in said and "pattern" not in said
    assert run(daemon.workspace.root, "events", "--level", "info")[0] == 0


def test_a_name_that_is_not_utf_8_is_refused_with_the_way_that_works(serve):
    daemon = serve().start()
    root = daemon.workspace.root
    odd = os.fsencode(root) + b"/b\xff.jsonl"
    Path(os.fsdecode(odd)).write_bytes(chat_rows(3, "odd"))
    code, said = run(root, "add", odd)
    assert code == 1, said
    assert "the name is not UTF-8" in said and f"copy it into {daemon.workspace.inbox}" in said
    there = daemon.workspace.inbox / os.fsdecode(b"b\xff.jsonl")
    Path(os.fsdecode(odd)).rename(there)  # as the hint says
    daemon.until_job("b\\xff.jsonl", "completed")
