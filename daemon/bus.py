"""The event stream: numbered events, kept in a ring, handed to any number of slow readers.

Invariant: publishing never waits and never grows without bound. A reader that falls behind, or
asks for events that are gone, gets one `reset` and reads everything again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import islice

import msgspec

RING_EVENTS = 4096
READER_EVENTS = 1024


@dataclass(frozen=True, slots=True)
class Sent:
    """One event, encoded once for all readers. `data` is JSON."""

    id: int
    kind: str
    data: bytes

    def as_stream(self) -> bytes:
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self.id, self.kind.encode(), self.data)


class Reader:
    """One subscriber. Only its own task calls `next`."""

    def __init__(self) -> None:
        self._pending: deque[Sent] = deque()
        self._arrived = asyncio.Event()
        self._reset_id: int | None = None
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self._arrived.set()

    def push(self, sent: Sent) -> None:
        if len(self._pending) >= READER_EVENTS:
            self.reset(sent.id)
        else:
            self._pending.append(sent)
            self._arrived.set()

    def reset(self, at_id: int) -> None:
        self._pending.clear()
        self._reset_id = at_id
        self._arrived.set()

    async def next(self, timeout_s: float) -> list[Sent]:
        """Everything that waits, or an empty list after `timeout_s`."""
        if not self._pending and self._reset_id is None and not self.closed:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout_s)
            except TimeoutError:
                return []
        found = list(self._pending)
        self._pending.clear()
        if self._reset_id is not None:
            found.insert(0, Sent(self._reset_id, "reset", b"{}"))
            self._reset_id = None
        return found


class Bus:
    """`first_id`: above every id given out before, so that ids grow over restarts too."""

    def __init__(self, first_id: int) -> None:
        self._ring: deque[Sent] = deque(maxlen=RING_EVENTS)
        self._next_id = first_id
        self._readers: set[Reader] = set()

    @property
    def last_id(self) -> int:
        return self._next_id - 1

    @property
    def readers(self) -> int:
        return len(self._readers)

    def take_id(self) -> int:
        """A number for an event whose data must carry it; publish it next."""
        self._next_id += 1
        return self._next_id - 1

    def publish(self, kind: str, data: object, event_id: int | None = None) -> None:
        number = self.take_id() if event_id is None else event_id
        sent = Sent(number, kind, msgspec.json.encode(data))
        self._ring.append(sent)
        for reader in self._readers:
            reader.push(sent)

    def subscribe(self, after: int | None) -> Reader:
        """A reader of everything after event `after` (None: from now on). Close it with `leave`."""
        reader = Reader()
        if after is not None and after != self.last_id:
            oldest = self._ring[0].id if self._ring else self._next_id
            if after > self.last_id or after < oldest - 1:
                reader.reset(self.last_id)
            else:
                missed = [sent for sent in islice(self._ring, None) if sent.id > after]
                if len(missed) > READER_EVENTS:
                    reader.reset(self.last_id)
                else:
                    for sent in missed:
                        reader.push(sent)
        self._readers.add(reader)
        return reader

    def close(self) -> None:
        """End every stream: the daemon shuts down."""
        for reader in self._readers:
            reader.close()

    def leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
