"""Killed before every durable operation: of a save, of intake and queue, of versions and rollback.

The rooms' own tests do it; here they run with every point there is, and are counted. Where one
case walks over all operations of an act by itself, it counts as one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERY = {"TRAINER_TUI_ALL_KILL_POINTS": "1", "ROLLBACK_SEEDS": "3", "OMP_WAIT_POLICY": "PASSIVE"}
ACTS = {
    "killed before each operation of a save": (
        "engine/test_resume.py",
        "before_a_durable_operation",
    ),
    "killed at three steps by dice, then bit-equal": ("engine/test_resume.py", "after_any_kill"),
    "killed at each operation of intake and queue": ("queue_room/test_kills.py", ""),
    "killed at each operation of a version's act": (
        "versions/test_kills.py",
        "death or minus_nine",
    ),
    "EIO at each operation of a version's act": ("versions/test_kills.py", "io_error"),
    "going back at bad moments, by dice": ("versions/test_going_back_by_dice.py", ""),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("act", ACTS)
def test_kill_points(act, tmp_path, record, torture):
    if not torture:
        pytest.skip("the rooms' own tests do a slice: make torture")
    name, wanted = ACTS[act]
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / name), "-q", "-x"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", f"--basetemp={tmp_path / 'in'}"]
    done = subprocess.run(
        [*command, "-k", wanted] if wanted else command,
        env={**os.environ, **EVERY},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    cases = int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
    broken = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    record.count(act, "kill_points", cases, cases - broken)
    assert done.returncode == 0 and cases > 0, done.stdout[-3000:]
