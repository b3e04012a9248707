"""Says what happened: to the log, to history, and to everyone who watches, with one number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.history import Event, History
from trainer_tui.safety import clock

log = logging.getLogger("event")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
TEXT_LIMIT = 2000


class Teller:
    """Called on the event loop only. `listeners` get every event after it was published."""

    def __init__(self, bus: Bus, history: History) -> None:
        self._bus = bus
        self._history = history
        self.listeners: list[Callable[[Event], None]] = []

    def say(self, level: str, topic: str, text: str, **data: Any) -> Event:
        """`level`: info | warning | error."""
        known = level if level in _LEVELS else "info"
        event = Event(self._bus.take_id(), clock.now_iso(), known, topic, text[:TEXT_LIMIT], data)
        log.log(_LEVELS[known], "%s: %s", topic, text)
        self._history.add_event(event)
        self._bus.publish("said", msgspec.to_builtins(event), event.id)
        for listener in self.listeners:
            listener(event)
        return event
