"""A spawned child ends at once when its entry has returned, with its exit code, logs and hooks."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

from trainer_tui.safety import child

ENTRY = '''
import atexit, logging, pathlib, sys

class Slow:
    """Stands for what takes a library long to take apart."""
    def __del__(self):
        import time
        time.sleep(60)

kept = Slow()

def run(connection, spec):
    place = pathlib.Path(spec.decode())
    atexit.register(lambda: (place / "hook").touch())
    print("last words")
    connection.send_bytes(b"done")
    return 7
'''


def test_a_child_whose_entry_has_returned_is_gone_at_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "slow_entry.py").write_text(ENTRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    ours, theirs = multiprocessing.Pipe()
    output = tmp_path / "out"
    process = child.spawn("slow_entry", theirs, str(tmp_path).encode(), output, "test")
    theirs.close()
    assert ours.poll(60) and ours.recv_bytes() == b"done"
    started_s = time.monotonic()
    process.join(50)
    assert process.exitcode == 7 and time.monotonic() - started_s < 40
    assert (tmp_path / "hook").exists(), "libraries are told"
    assert output.read_text() == "last words\n"
