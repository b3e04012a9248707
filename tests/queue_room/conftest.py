"""Workspaces, staged jobs and inbox files for the queue's tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_tui.data import toy_chats, toy_tokenizer
from trainer_tui.queue.job import Meta, encode_meta
from trainer_tui.queue.store import Queue
from trainer_tui.safety.workspace import Workspace

Stage = Callable[..., Path]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "config.toml").touch()
    found = Workspace(tmp_path)
    found.prepare()
    return found


@pytest.fixture
def queue(workspace: Workspace) -> Queue:
    return Queue(workspace)


@pytest.fixture
def stage() -> Stage:
    """`stage(workspace, "name.jsonl")` makes a staged job without a worker."""

    def make(workspace: Workspace, name: str, content: str | None = None) -> Path:
        data = (content if content is not None else f"content of {name}").encode()
        folder = workspace.queue / f".staging-{hashlib.sha256(data).hexdigest()[:8]}-{len(name)}"
        folder.mkdir()
        (folder / "data.jsonl").write_bytes(data)
        meta = Meta(
            original_name=name,
            file_sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            rows=1,
            kept_rows=1,
            verdict="ok",
        )
        (folder / "meta.json").write_bytes(encode_meta(meta))
        return folder

    return make


@pytest.fixture(scope="session")
def toys() -> toy_chats.ToySet:
    return toy_chats.generate(rows_per_file=60)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, toys: toy_chats.ToySet) -> Path:
    folder = tmp_path_factory.mktemp("model")
    toy_tokenizer.build(folder, toys.texts())
    return folder


@pytest.fixture
def with_model(workspace: Workspace, model_folder: Path) -> Workspace:
    (workspace.root / "config.toml").write_text(f"base_model = {json.dumps(str(model_folder))}\n")
    return workspace


def row(*contents: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    return json.dumps({"messages": messages})


@pytest.fixture(name="row")
def row_fixture() -> Callable[..., str]:
    return row
