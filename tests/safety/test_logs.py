"""What is logged stays bounded, readable and is not doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from trainer_tui.safety import logs

LOGGER = """
import logging, pathlib, sys
from trainer_tui.safety import logs
log = logs.set_up(pathlib.Path(sys.argv[1]), "daemon", console=True)
log.info("all is well")
log.error("something \x1b[2Jbroke")
"""


def run(folder: Path, output: Path) -> str:
    with output.open("ab") as stream:
        subprocess.run(
            [sys.executable, "-c", LOGGER, str(folder)], stderr=stream, check=True, timeout=60
        )
    return output.read_text()


def test_an_output_that_nobody_rotates_gets_errors_only_and_the_log_gets_all(tmp_path: Path):
    words = run(tmp_path, tmp_path / "daemon.out")
    assert "all is well" not in words
    assert "broke" in words
    assert "all is well" in (tmp_path / "daemon.log").read_text()


def test_a_terminal_or_a_file_of_ones_own_gets_all(tmp_path: Path):
    words = run(tmp_path, tmp_path / "mine.txt")
    assert "all is well" in words
    assert "\x1b" not in words


def test_json_lines_hold_every_record_with_escapes_neutralised(tmp_path: Path):
    run(tmp_path, tmp_path / "daemon.out")
    lines = [json.loads(line) for line in (tmp_path / "daemon.jsonl").read_text().splitlines()]
    assert [line["level"] for line in lines] == ["info", "error"]
    assert "\x1b" not in (tmp_path / "daemon.jsonl").read_text()


def test_an_output_that_has_grown_is_set_aside_in_place_of_the_one_before(tmp_path: Path):
    output = tmp_path / "trainer.out"
    logs.make_room(output)  # none yet
    output.write_bytes(b"x" * (logs.FILE_BYTES + 1))
    (tmp_path / "trainer.out.1").write_text("older")
    logs.make_room(output)
    assert not output.exists()
    assert (tmp_path / "trainer.out.1").stat().st_size == logs.FILE_BYTES + 1
    output.write_text("small")
    logs.make_room(output)
    assert output.read_text() == "small"


ROTATING = """
import logging, pathlib, sys
from trainer_tui.safety import logs
logs.FILE_BYTES = 10_000
log = logs.set_up(pathlib.Path(sys.argv[1]), "daemon", console=False)
for number in range(2000):
    log.info("line %d of many", number)
try:
    raise OSError("a name with \x1b]0;an escape\x07 in it")
except OSError:
    log.exception("it failed")
"""


def test_logs_are_rotated_by_size_and_the_oldest_go(tmp_path: Path):
    subprocess.run([sys.executable, "-c", ROTATING, str(tmp_path)], check=True, timeout=60)
    for suffix in ("log", "jsonl"):
        kept = sorted(tmp_path.glob(f"daemon.{suffix}*"))
        assert len(kept) == 1 + logs.FILES_KEPT
        assert all(file.stat().st_size <= 10_000 for file in kept)
    newest = (tmp_path / "daemon.log").read_text()
    assert "line 1999" in newest and "line 3 " not in "".join(
        file.read_text() for file in tmp_path.glob("daemon.log*")
    )


def test_a_stack_with_escapes_in_it_cannot_turn_a_terminal(tmp_path: Path):
    subprocess.run([sys.executable, "-c", ROTATING, str(tmp_path)], check=True, timeout=60)
    text = (tmp_path / "daemon.log").read_text()
    assert "Traceback" in text and "an escape" in text and "OSError" in text
    assert "\x1b" not in text and "\x07" not in text
