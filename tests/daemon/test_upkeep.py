"""What a daemon lets go of by itself: nothing that was committed, and through the trash."""

from __future__ import annotations

import time

from daemon_harness import wait_for

from trainer_tui.daemon import upkeep


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
    from datetime import datetime, timedelta

    for name in ("job.failed.x", "incident.2026", "versions"):
        (tmp_path / name).mkdir()
    upkeep._empty_trash(tmp_path, datetime.now().astimezone() - timedelta(hours=1))
    assert len(list(tmp_path.iterdir())) == 3
    upkeep._empty_trash(tmp_path, datetime.fromtimestamp(time.time() + 60).astimezone())
    assert [path.name for path in tmp_path.iterdir()] == ["versions"]  # not ours
