"""Which events are worth telling a person who is away, and as what. Sending is `safety.notify`."""

from __future__ import annotations

import socket

from trainer_tui.daemon.history import Event
from trainer_tui.safety.notify import Notice, Notifier

_TITLES = {
    "trainer": "The trainer ended",
    "training": "Training needs a person",
    "job": "A file was set aside",
    "disk": "The disk",
    "gpu": "The GPU",
    "version": "A new version",
    "validation": "A new best",
    "queue": "The queue is done",
}
_WORTH_AT_INFO = ("version", "validation", "queue")


def notice_of(event: Event) -> Notice | None:
    """What to send for an event; None when it is not worth it."""
    if event.level == "info" and event.topic not in _WORTH_AT_INFO:
        return None
    if event.level == "warning" and event.topic not in ("disk", "gpu"):
        return None
    topic = event.topic if event.level == "info" else f"incident.{event.topic}"
    title = _TITLES.get(event.topic, event.topic)
    return Notice(topic, event.level, title, event.text, socket.gethostname(), event.at)


class Notices:
    """A listener of the teller."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def hear(self, event: Event) -> None:
        notice = notice_of(event)
        if notice is not None:
            self._notifier.tell(notice)
