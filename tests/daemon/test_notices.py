"""Which events reach a person who is away."""

from __future__ import annotations

import pytest

from trainer_tui.daemon.history import Event
from trainer_tui.daemon.notices import notice_of


def event(level: str, topic: str, text: str = "words") -> Event:
    return Event(1, "2026-01-01T00:00:00.000Z", level, topic, text, {})


@pytest.mark.parametrize(
    ("level", "topic", "expected"),
    [
        ("error", "trainer", "incident.trainer"),
        ("error", "job", "incident.job"),
        ("error", "checkpoint", "incident.checkpoint"),
        ("warning", "gpu", "incident.gpu"),
        ("warning", "disk", "incident.disk"),
        ("info", "queue", "queue"),
        ("info", "validation", "validation"),
        ("info", "version", "version"),
        ("info", "checkpoint", None),
        ("info", "job", None),
        ("warning", "queue", None),
    ],
)
def test_incidents_the_queues_end_a_new_best_and_versions_are_told(level, topic, expected):
    notice = notice_of(event(level, topic))
    assert (notice and notice.topic) == expected
    if notice is not None:
        assert notice.text == "words" and notice.title and notice.host
