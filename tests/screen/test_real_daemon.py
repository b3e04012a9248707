"""The screen against a real daemon process on a real socket, and the fake checked against it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.client import Client
from trainer_tui.tui.remote import Remote
from trainer_tui.tui.view import Lost, Panel

pytestmark = pytest.mark.end_to_end
ROW = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}


class Running:
    """A daemon process in its own workspace, without a model: it queues and never trains."""

    def __init__(self, root: Path) -> None:
        self.space = Workspace(root)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Running:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer_tui.daemon", "--workspace", str(self.space.root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end_s = time.monotonic() + 30
        while not self.client.alive():
            assert time.monotonic() < end_s and self.process.poll() is None, "no daemon"
            time.sleep(0.05)
        return self

    @property
    def client(self) -> Client:
        return Client(self.space.socket)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Longer than the 107 bytes of a Unix socket's name.
    root = tmp_path_factory.mktemp("w") / ("a-long-name-" * 8) / "workspace"
    root.mkdir(parents=True)
    (root / "config.toml").write_text("[disk]\nmin_free_gb = 0\nmin_free_share = 0.0\n")
    found = Running(root).start()
    for name in ("first", "second", "third"):
        file = root / f"{name}.jsonl"
        rows = [
            {"messages": [{"role": "user", "content": f"{name} {i}"}, ROW["messages"][1]]}
            for i in range(8)
        ]
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        found.client.post("/v1/jobs", {"path": str(file)})
    yield found
    found.kill()


def keys_of(document: Any, path: str = "") -> set[str]:
    """Every key of a document with its path; lists by their first item."""
    if isinstance(document, list):
        return keys_of(document[0], f"{path}[]") if document else set()
    if not isinstance(document, dict):
        return set()
    found = {f"{path}.{key}" for key in document}
    for key, value in document.items():
        found |= keys_of(value, f"{path}.{key}")
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/v1/status", "/v1/jobs?limit=5", "/v1/history?limit=5", "/v1/versions/lineage",
        "/v1/versions/trash", "/v1/versions/emergencies", "/v1/disk", "/v1/undo",
    ],
)  # fmt: skip
def test_the_fake_is_like_the_real_one(running: Running, fake: Any, path: str) -> None:
    """Every key that the screen's fake serves is served by the real daemon too."""
    from urllib.parse import parse_qs, urlsplit

    url = urlsplit(path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    state = fake.FakeDaemon()
    state.jobs = [job for job in state.jobs if job["state"] == "waiting"]
    state.state = "idle"
    _, mine = state.get(url.path, query)
    real = running.client.get(path)
    absent = {
        key
        for key in keys_of(mine) - keys_of(real)
        # not served while there is no job in hand, no GPU, no version and nothing to undo
        if not key.startswith((".training.job.", ".machine.gpus[]", ".undo."))
        and not (path.startswith("/v1/versions/") and "[]" in key)
    }
    assert absent == set()


async def test_move_undo_and_a_killed_daemon(running: Running) -> None:
    app = TrainerApp(Remote(running.space.socket, "the screen of a test"))
    app.actor = "the screen of a test"

    async def until(true: Any, what: str) -> None:
        end_s = time.monotonic() + 15
        while not true():
            assert time.monotonic() < end_s, f"never: {what}"
            await pilot.pause(0.02)

    def order() -> list[str]:
        listed = running.client.get("/v1/jobs?state=waiting")["jobs"]
        return [job["name"].removesuffix(".jsonl") for job in listed]

    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: len(app.view.waiting) == 3, "the queue is shown")
        await pilot.press("J")
        await until(lambda: order() == ["second", "first", "third"], "moved in the daemon")
        await until(
            lambda: [job.name[:-6] for job in app.view.waiting] == order(), "and on the screen"
        )
        await pilot.press("u")
        await until(lambda: order() == ["first", "second", "third"], "undone")
        await pilot.press("B", "+")
        await until(lambda: order()[0] == "first", "HIGH is first")
        await until(lambda: any("high" in said.text for said in app.view.said), "it is told")
        await pilot.press("x")
        await until(lambda: len(order()) == 2, "removed")
        await pilot.press("u")
        await until(lambda: len(order()) == 3, "and brought back")
        await until(lambda: app.report_of(app.view.waiting[0].id), "its report is read")
        running.kill()
        await until(lambda: isinstance(app.view.link, Lost), "the loss is seen")
        running.start()
        await until(lambda: not isinstance(app.view.link, Lost), "it is back")
        await until(lambda: len(app.view.waiting) == 3, "with the same queue")
        await pilot.press("u")
        await until(lambda: order() == ["second", "third", "first"], "undo survived")
        assert app.focus_now() is Panel.QUEUE
