"""The disk's watch: forecast, order of the owners, left-overs, an owner that fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from daemon_harness import Harness, make_workspace, plant, wait_for

from trainer_tui.daemon.disk_owners import STAGING_AGE_S, StagingOwner
from trainer_tui.safety import clock, disk, durable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.deeds_look import disk_lines

# Free space that shrinks by 100 MB a second, from 1 TB over the floor.
SHRINKING = """
import time
from trainer_tui.daemon import disk_watch as w
from trainer_tui.safety import disk
w.LOOK_EVERY_S = w.FORECAST_EVERY_S = 0.2
began = time.monotonic()
disk.free_bytes = lambda path: int(1e12 - 1e8 * (time.monotonic() - began))
"""


def left_over(folder, name: str, age_s: float):
    path = folder / f"{durable.STAGING_PREFIX}{name}"
    path.mkdir()
    (path / "part").write_bytes(b"x" * 50_000)
    for entry in (path / "part", path):
        os.utime(entry, (clock.now_s() - age_s, clock.now_s() - age_s))
    return path


def test_left_overs_are_spared_only_when_nobody_has_touched_them_for_long(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.prepare()
    old = left_over(workspace.current_model, "checkpoint-7", STAGING_AGE_S + 60)
    fresh = left_over(workspace.current_model, "checkpoint-9", 5)
    written = left_over(workspace.queue, "big", STAGING_AGE_S + 60)
    (written / "part").write_bytes(b"still written")
    [offer] = StagingOwner(workspace).offers()
    assert offer.what == old.name and offer.exclusive_bytes >= 50_000
    offer.free()
    assert not old.exists() and fresh.exists() and written.exists()


def test_what_would_go_is_listed_in_the_order_it_goes(serve):
    daemon = serve(steps=5, save_every=1)
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    daemon.post("/v1/versions", {"description": "one"})
    thrown = daemon.workspace.trash / "job.1-x"
    thrown.mkdir()
    (thrown / "data.jsonl").write_bytes(b"x" * 9000)
    tokens = daemon.workspace.cache / "tokens"
    tokens.mkdir(exist_ok=True)
    (tokens / "t.bin").write_bytes(b"x" * 9000)
    left = left_over(daemon.workspace.current_model, "checkpoint-1", STAGING_AGE_S + 60)
    found = daemon.get("/v1/disk")
    owners = [entry["owner"] for entry in found["would_go"]]
    assert owners[:3] == ["trash", "staging", "data"] and set(owners[3:]) <= {"versions"}
    assert all(entry["why"] and entry["bytes"] > 0 for entry in found["would_go"])
    assert thrown.exists() and left.exists(), "a look deletes nothing"
    assert found["floor_bytes"] > 0 and found["next_save_bytes"] > 0


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_disk_that_fills_is_told_hours_ahead_once(serve):
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        settings = f'[disk]\nmin_free_gb = 50.0\n[notify]\nwebhook = "{url}"\n'
        daemon = serve(settings=settings)
        daemon.prelude = SHRINKING
        daemon.start()
        [told] = wait_for(lambda: daemon.said("the disk is full in"), 30)
        assert told["level"] == "warning" and "hours at this rate" in told["text"]
        hours = float(told["text"].split(" in ")[1].split()[0])
        assert 2.0 < hours < 3.0  # (1000 - 50) GB at 0.1 GB/s
        left_s = daemon.get("/v1/disk")["seconds_left"]
        assert 7000 < left_s < 10_000
        wait_for(lambda: server.seen, 30, "a person who is away hears of it")
        assert server.seen[0]["topic"] == "incident.disk"
        assert len(daemon.said("the disk is full in")) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_an_owner_that_fails_is_said_and_training_waits(serve):
    daemon = serve(settings="[disk]\nmin_free_gb = 1e9\nmin_free_share = 1.0\n")
    daemon.workspace.prepare()
    daemon.prelude = (
        "from trainer_tui.daemon import disk_watch as w; w.LOOK_EVERY_S = 0.3\n"
        "def broken(*_): raise OSError(5, 'Input/output error')\n"
        "w.disk.reclaim = broken"
    )
    daemon.start()
    wait_for(lambda: daemon.said("no room could be made"), 30)
    assert daemon.get("/v1/disk")["holding"]
    assert disk.WITHOUT_EFFECT_LIMIT == 8


SMALL = "[disk]\nmin_free_gb = 0.002\nmin_free_share = 0.5\n"
AT_ONCE = (
    "from trainer_tui.daemon import disk_watch as w; w.LOOK_EVERY_S = 0.3; w.BALLAST_AFTER_S = 0"
)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "small", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place):
    """Take every byte that is free now, and none that comes free meanwhile."""
    left = shutil.disk_usage(place).free
    with (place / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while left > 0:
            left -= stream.write(bytes(min(left, 1 << 16)))


@pytest.mark.parametrize("ballast", [True, False], ids=["ballast", "without"])
def test_on_a_full_disk_the_ballast_lets_a_person_pause(small_disk, ballast):
    """With it a pause is durable on a disk that was just filled; without it, it is refused."""
    daemon = Harness(make_workspace(small_disk / "ws", SMALL))
    no_ballast = "; w.Ballast.put = lambda self: False"
    daemon.prelude = AT_ONCE if ballast else AT_ONCE + no_ballast
    daemon.start()
    file = daemon.workspace.state / "ballast"
    try:
        if ballast:
            wait_for(lambda: file.exists() and file.stat().st_blocks * 512 >= 32 << 20, 30)
        fill(small_disk)
        if ballast:
            wait_for(lambda: not file.exists(), 30, "the ballast is given up")
            wait_for(lambda: shutil.disk_usage(small_disk).free > 1 << 20, 30, "its bytes are back")
        answer = daemon.call("POST", "/v1/training/pause", {}, timeout_s=60)
        assert answer.status == (200 if ballast else 507), answer
        if ballast:
            assert json.loads(daemon.workspace.intent_file.read_bytes())["training"] == "pause"
        else:
            assert answer.json["detail"] == "the disk is full: nothing was changed"
            assert answer.json["hint"] == "trainer-tui disk shows what would go, and why"
        (small_disk / "filler").unlink()
        if ballast:
            wait_for(file.exists, 30, "it is put back when there is room")
    finally:
        (small_disk / "filler").unlink(missing_ok=True)
        daemon.close()


@pytest.fixture
def models_elsewhere(serve):
    """A daemon whose `models/` is a link to another filesystem, which is full while a file says
    so: filling it for real would be felt by the whole machine."""
    memory = Path("/dev/shm")
    daemon = serve(steps=5, save_every=1)
    models = daemon.workspace.models
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == models.stat().st_dev:
        pytest.skip("needs a second filesystem; /dev/shm is none here")
    daemon.prelude = (
        "from pathlib import Path\n"
        "from trainer_tui.daemon import disk_watch as w; w.LOOK_EVERY_S = 0.3\n"
        "from trainer_tui.safety import disk\n"
        f"full, there = Path({str(daemon.workspace.root / 'full')!r}), {memory.stat().st_dev}\n"
        "short = lambda path: path.stat().st_dev == there and full.exists()\n"
        "disk.free_bytes = lambda path: 0 if short(path) else 10**12"
    )
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        shutil.move(models, Path(elsewhere) / "models")
        models.symlink_to(Path(elsewhere) / "models")
        yield daemon
        daemon.close()


def test_a_short_disk_of_the_models_is_named_and_training_waits_for_it(models_elsewhere):
    daemon = models_elsewhere
    plant(daemon.workspace, "a.jsonl")
    daemon.start()
    daemon.until_job("a.jsonl", "completed")
    thrown = daemon.workspace.trash / "job.1-x"
    thrown.mkdir()
    (thrown / "data.jsonl").write_bytes(b"x" * 9000)
    assert [one["place"] for one in daemon.get("/v1/disk")["filesystems"]] == ["", "models"]
    (daemon.workspace.root / "full").touch()
    wait_for(lambda: daemon.get("/v1/disk")["holding"], 30)
    found = daemon.get("/v1/disk")
    assert found["holding"].startswith("the disk of models has 0.0 GB free")
    assert (found["place"], found["free_bytes"]) == ("models", 0)
    lines = disk_lines(found)
    assert "place                models" in lines
    assert any("models" in line and "free 0B" in line for line in lines)
    refused = daemon.call("POST", "/v1/jobs", {"path": "/etc/hostname"})
    assert refused.status == 409 and "the disk of models" in refused.json["detail"]
    command = [sys.executable, "-m", "trainer_tui.tui.cli", "-w", str(daemon.workspace.root)]
    said = subprocess.run([*command, "disk"], capture_output=True, text=True, timeout=60).stdout
    assert "  the workspace: " in said and "  models: 0B free, " in said
    assert thrown.exists(), "what lies on the root's disk gives nothing back to the models'"
    (daemon.workspace.root / "full").unlink()
    wait_for(lambda: daemon.said("there is room on the disk again"), 30)
    assert daemon.get("/v1/disk")["holding"] == ""
