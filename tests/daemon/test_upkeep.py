"""What a daemon lets go of by itself: nothing that was committed, and through the trash."""

from __future__ import annotations

import errno
import time
from datetime import datetime, timedelta

from daemon_harness import wait_for

from trainer_tui.daemon import upkeep
from trainer_tui.safety import durable

STUCK = """
import datetime, errno
from pathlib import Path
from trainer_tui.daemon import history, upkeep
from trainer_tui.safety import durable
upkeep.RECONCILE_EVERY_S = upkeep.EXPIRE_EVERY_S = 0.05
upkeep.timedelta = lambda days: datetime.timedelta(days=-1)  # all of it is old
real, prune = durable.remove_tree, history.History.prune
def remove_tree(path):
    if path.name == "job.failed.1":
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    real(path)
def count(self):
    with (self._path.parent.parent / "pruned").open("a") as file:
        file.write(".")
    prune(self)
durable.remove_tree, history.History.prune = remove_tree, count
"""


def test_old_incidents_go_to_the_trash_the_newest_stay_and_it_is_said(serve):
    daemon = serve()
    daemon.workspace.prepare()
    total = upkeep.INCIDENTS_KEPT + 3
    for number in range(total):
        (daemon.workspace.incidents / f"2026-01-01T{number:06d}-abc").mkdir()
    daemon.start()
    wait_for(lambda: daemon.said("3 old incidents went to the trash"))
    left = sorted(path.name for path in daemon.workspace.incidents.iterdir())
    assert len(left) == upkeep.INCIDENTS_KEPT
    assert left[0] == "2026-01-01T000003-abc"
    assert len(list(daemon.workspace.trash.glob("incident.*"))) == 3


def test_trash_is_emptied_by_age_and_only_what_is_old(tmp_path):
    for name in ("job.failed.x", "incident.2026", "versions"):
        (tmp_path / name).mkdir()
    (tmp_path / "duplicate-of-7.20261101T100000").write_bytes(b"a copy")
    upkeep._empty_trash(tmp_path, datetime.now().astimezone() - timedelta(hours=1))
    assert len(list(tmp_path.iterdir())) == 4
    upkeep._empty_trash(tmp_path, datetime.fromtimestamp(time.time() + 60).astimezone())
    assert [path.name for path in tmp_path.iterdir()] == ["versions"]  # not ours


def test_one_entry_that_cannot_be_deleted_keeps_nothing_else_in_the_trash(tmp_path, monkeypatch):
    for name in ("job.1", "job.2", "job.3"):
        (tmp_path / name).mkdir()
    real = durable.remove_tree

    def refuse_the_second(path):
        if path.name == "job.2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(durable, "remove_tree", refuse_the_second)
    late = datetime.fromtimestamp(time.time() + 60).astimezone()
    assert upkeep._empty_trash(tmp_path, late) == ["job.2: Permission denied"]
    assert [path.name for path in tmp_path.iterdir()] == ["job.2"]


def test_what_stays_in_the_trash_is_said_once_and_the_rest_goes_on(serve):
    daemon = serve()
    daemon.prelude = STUCK
    daemon.workspace.prepare()
    for number in (1, 2):
        (daemon.workspace.trash / f"job.failed.{number}").mkdir()
    daemon.start()
    wait_for(lambda: (daemon.workspace.root / "pruned").exists())
    pruned = daemon.workspace.root / "pruned"
    wait_for(lambda: pruned.stat().st_size > 3)  # as often as it looked
    [said] = daemon.said("the trash keeps what cannot be deleted")
    assert "job.failed.1: Permission denied" in said["text"] and said["level"] == "warning"
    assert not (daemon.workspace.trash / "job.failed.2").exists()
    assert not daemon.said("upkeep: ")
