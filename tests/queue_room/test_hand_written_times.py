"""A time in a `meta.json` that a hand edited, or one that a client sends, may be anything."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from trainer_tui.daemon import job_view
from trainer_tui.queue.line import Work
from trainer_tui.queue.store import Queue
from trainer_tui.queue.upkeep import expired
from trainer_tui.queue.waiting import why_waiting
from trainer_tui.safety.config import Retention
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NO_LOCAL_TIME = ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"]


def edited(workspace: Workspace, folder: str, **values: str) -> Queue:
    """The queue read again after a hand changed the one job's `meta.json` and place."""
    [job] = workspace.queue.glob("normal/*")
    path = job / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    job.rename(workspace.queue / folder / job.name)
    return Queue(workspace)


@pytest.mark.parametrize("text", ["tomorrow", "", *NO_LOCAL_TIME])
def test_not_before_that_is_no_time_counts_as_none_and_is_told(queue: Queue, stage, text) -> None:
    queue.admit(stage(queue.workspace, "a"), "normal")
    again = edited(queue.workspace, "normal", not_before=text)
    [finding] = again.findings
    assert finding.kind == "edited" and "not_before" in finding.text
    [job] = again.waiting()
    assert why_waiting(job, 0, NOW) == "next"
    standing = job_view.Standing(1, 0, Work())
    view = job_view.view(job, standing, job_view.Context(NOW), None)
    assert view["not_before"] is None
    assert again.claim_next(NOW) is not None


def test_a_finish_without_a_zone_is_local_and_one_that_is_no_time_never_ages(
    queue: Queue, stage
) -> None:
    queue.admit(stage(queue.workspace, "a"), "normal")
    again = edited(queue.workspace, "failed", finished_at="2026-01-01T10:00:00")
    assert again.findings == []
    assert len(expired(again.jobs(), Retention(), NOW)) == 1
    [path] = queue.workspace.queue.glob("failed/*/meta.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": NO_LOCAL_TIME[0]}))
    again = Queue(queue.workspace)
    assert "finished_at" in again.findings[0].text
    assert expired(again.jobs(), Retention(), NOW) == []


@pytest.mark.parametrize("text", NO_LOCAL_TIME)
def test_a_time_beyond_every_calendar_is_refused(queue: Queue, stage, text) -> None:
    job = queue.admit(stage(queue.workspace, "a"), "normal")
    with pytest.raises(Refused, match="is not a time"):
        queue.set_not_before(job.id, text)
