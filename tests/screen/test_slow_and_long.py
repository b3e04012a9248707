"""A link of 300 ms each way, and a day of events: the screen stays usable and stays small."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from trainer_tui.tui.reduce import EVENTS_KEPT, POINTS_KEPT, SaidCame, StatusCame, StepsCame, reduce
from trainer_tui.tui.view import Live, Said, Status, Step, View

DELAY_S = 0.3


async def _late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each piece `DELAY_S` after it came, in order."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            at_s, piece = await waiting.get()
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        writer.close()

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            waiting.put_nowait((time.monotonic() + DELAY_S, piece))
    waiting.put_nowait((time.monotonic() + DELAY_S, b""))
    with contextlib.suppress(OSError):
        await delivering


@contextlib.asynccontextmanager
async def slow_link(real: Path, far: Path) -> AsyncIterator[None]:
    """A socket at `far` that is `real`, `DELAY_S` away."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_daemon = await asyncio.open_unix_connection(str(real))
        await asyncio.gather(_late(reader, to_daemon), _late(behind, writer))

    server = await asyncio.start_unix_server(join, str(far))
    try:
        yield
    finally:
        server.close()


class _Far:
    """The fake daemon as seen from far away."""

    def __init__(self, server: Any, path: Path) -> None:
        self.path, self.state = path, server.state


async def test_a_link_of_300_ms_loses_nothing_and_freezes_nothing(
    server: Any, stage: Any, tmp_path: Path
) -> None:
    far = tmp_path / "far.sock"
    async with slow_link(server.path, far), stage(_Far(server, far)) as on:
        await on.until(lambda: isinstance(on.app.view.link, Live), "live")
        at_s = time.monotonic()
        for key in ("J", "v", "escape", "j"):
            await on.pilot.press(key)
        assert time.monotonic() - at_s < 2 * DELAY_S * 4, "looking waits for no reply"
        await on.settled()
        assert on.asked() == [("PATCH", "/v1/jobs/34", {"after": 32})]
        await on.until(lambda: on.names()[1] == "refunds.jsonl", "moved")
        server.state.said("warning", "trainer", "seen from far away")
        await on.until(lambda: "seen from far away" in on.text("events"), "news come too")


def _bytes_of(value: Any, seen: set[int]) -> int:
    """Memory of a view with all that hangs on it, each once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(_bytes_of(item, seen) for item in [*value.keys(), *value.values()])
    if isinstance(value, tuple | list):
        return size + sum(_bytes_of(item, seen) for item in value)
    for names in (getattr(type(value), "__struct_fields__", ()), getattr(value, "__slots__", ())):
        size += sum(_bytes_of(getattr(value, name), seen) for name in names)
    return size


def test_memory_is_flat_over_a_day_of_news(fake: Any) -> None:
    """A day: 86,400 steps in batches, a status every 10 s, 5,000 events."""
    view, sizes = View(link=Live()), []
    document = fake.FakeDaemon().status()
    import msgspec

    status = msgspec.convert(document, type=Status)
    for second in range(0, 86_400, 10):
        steps = tuple(
            Step(step=second + i, loss=1.0 + i, learning_rate=2e-4, grad_norm=0.5 + i,
                 tokens_per_s=41_000.0 + i, at="2026-11-24T12:00:00.000Z")
            for i in range(10)
        )  # fmt: skip
        view, _ = reduce(view, StepsCame(steps, float(second)))
        view, _ = reduce(view, StatusCame(status, float(second)))
        if second % 20 == 0:
            said = Said(id=second, level="info", topic="job", text=f"something at {second}")
            view, _ = reduce(view, SaidCame(said))
        if second % 21_600 == 0 and second:
            sizes.append(_bytes_of(view, set()))
    sizes.append(_bytes_of(view, set()))
    assert len(view.said) <= EVENTS_KEPT
    assert all(len(points) <= POINTS_KEPT for points in view.curves.values())
    assert max(sizes) < 1.6 * min(sizes) and max(sizes) < 6_000_000, sizes
