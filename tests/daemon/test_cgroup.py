"""A group of its own for a trainer: what has cleared its environment and left its session is found.

Needs root and a cgroup2 mount; elsewhere only what happens without them is tested.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import plant, wait_for

from trainer_tui.safety import cgroup, processes

# A grandchild that nothing in its environment, parent or session leads to.
HIDER = (
    "import os, sys, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "os.execve('/bin/sleep', ['sleep', '1000'], {})\n"
)


@pytest.fixture
def delegated(tmp_path: Path) -> Iterator[Path]:
    """A group marked as systemd marks one with `Delegate=yes`."""
    mount = cgroup._mount_point()
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and cgroup2")
    folder = mount / f"torture-{os.getpid()}"
    try:
        folder.mkdir()
        os.setxattr(folder, cgroup.DELEGATE_MARK, b"1")
    except OSError:
        pytest.skip("no group can be made here")
    yield folder
    cgroup.kill(folder)
    for below in (*folder.glob("*/"), folder):
        wait_for(lambda below=below: cgroup.empty(below), 10)
        with contextlib.suppress(OSError):
            below.rmdir()


def hidden(folder: Path) -> int:
    """Start the hider inside a group; the pid of what it left there."""
    begin = f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n"
    subprocess.run([sys.executable, "-c", f"{begin}{HIDER}"], check=True)
    return int(wait_for(lambda: (folder / "cgroup.procs").read_text().split())[0])


def test_a_group_that_is_not_ours_to_divide_is_left_alone(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    assert not cgroup.delegated(plain)
    assert cgroup.make("x", plain) is None
    assert cgroup.folder_of(2**22 + 1) is None
    assert not cgroup.kill(tmp_path / "nothing") and not cgroup.put(tmp_path / "nothing", 1)
    assert not cgroup.kill_with(os.getpid()), "this process has no group of its own"


def test_a_whole_group_ends_at_once_however_it_hides(delegated: Path) -> None:
    folder = cgroup.make("run", delegated)
    assert folder is not None
    pid = hidden(folder)
    assert pid not in {found.pid for found in processes.tagged("")}
    assert cgroup.kill_with(pid)
    wait_for(lambda: cgroup.empty(folder), 10)
    cgroup.remove(folder)
    assert not folder.exists()


def test_without_the_mark_no_group_is_made(delegated: Path) -> None:
    os.removexattr(delegated, cgroup.DELEGATE_MARK)
    assert cgroup.make("run", delegated) is None


@pytest.mark.end_to_end
def test_a_trainer_has_a_group_and_leaves_nothing_behind(delegated: Path, serve) -> None:
    daemon = serve(steps=100_000)
    plant(daemon.workspace, "a.jsonl")
    daemon.prelude = f"open({str(delegated / 'cgroup.procs')!r}, 'w').write('0')"
    daemon.start()
    wait_for(lambda: (daemon.training()["global_step"] or 0) > 3, 60)
    [group] = delegated.glob(f"{cgroup.PREFIX}*")
    trainer = daemon.training()["trainer_pid"]
    assert str(trainer) in (group / "cgroup.procs").read_text().split()
    pid = hidden(group)
    os.kill(trainer, signal.SIGKILL)
    wait_for(lambda: processes.identify(pid) is None, 30, "what hid is ended, too")
    wait_for(lambda: not group.exists(), 30, "the empty group goes")
    wait_for(lambda: daemon.training()["trainer_pid"] not in (None, trainer), 30)
    assert daemon.stop() == 0
    assert not list(delegated.glob(f"{cgroup.PREFIX}*"))
