"""A fake daemon on a real socket, and the screen attached to it without a terminal."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.glyphs import UNICODE
from trainer_tui.tui.remote import Remote

HERE = Path(__file__).resolve().parent


def load_fake() -> ModuleType:
    """`fake_daemon` without a `tests` package on the path."""
    name = "screen_fake_daemon"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "fake_daemon.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("NO_COLOR", "TMUX", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> ModuleType:
    return load_fake()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    found = load_fake().FakeServer(tmp_path / "api.sock").start()
    yield found
    found.stop()


class Stage:
    """The app under test, its pilot and its daemon."""

    def __init__(self, app: Any, pilot: Any, server: Any) -> None:
        self.app, self.pilot, self.server = app, pilot, server

    @property
    def daemon(self) -> Any:
        return self.server.state

    async def until(self, true: Callable[[], Any], what: str = "") -> None:
        """Wait for a condition; fails after 30 s, which a loaded machine may need."""
        end_s = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end_s, f"never: {what or true}"
            await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
        await self.settled()

    async def settled(self) -> None:
        """Every change that was asked for is done."""
        await self.pilot.pause()
        await self.until(lambda: not self.app._pressed, "keys are taken")
        await self.pilot.pause()
        await self.until(
            lambda: not self.app._queued or len(self.app.screen_stack) > 1, "changes are done"
        )
        await self.pilot.pause()

    @property
    def dialog(self) -> Any:
        """The screen over the root, once it takes keys; None without one."""
        screen = self.app.screen
        if len(self.app.screen_stack) < 2 or not screen.is_mounted:
            return None
        return screen if screen.focused is not None or not screen.focus_chain else None

    def asked(self) -> list[tuple[str, str, Any]]:
        """The changes that reached the daemon."""
        return list(self.daemon.requests)

    def text(self, name: str) -> str:
        """What a panel shows."""
        from trainer_tui.tui.ink import plain_text

        return plain_text(self.app.root.query_one(f"#{name}")._rows)

    def names(self) -> list[str]:
        return [job["name"] for job in self.daemon.jobs if job["state"] == "waiting"]


@asynccontextmanager
async def open_stage(
    server: Any, size: tuple[int, int] = (80, 24), **more: Any
) -> AsyncIterator[Stage]:
    empty = more.pop("empty", False)
    app = TrainerApp(Remote(server.path), glyphs=more.pop("glyphs", UNICODE), **more)
    async with app.run_test(size=size) as pilot:
        stage = Stage(app, pilot, server)
        await stage.until(
            lambda: app.view.status and (app.view.jobs or empty) and app.view.said,
            "the snapshot has come",
        )
        await pilot.pause(0.1)
        yield stage


@pytest.fixture
def stage() -> Any:
    return open_stage
