"""The whole product: the installed command, the real daemon, the real trainer, a tiny model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from person import Person

from trainer_tui.tui.workspace_setup import make_workspace

SETTINGS: dict[str, Any] = {
    "model_name": "test/tiny",
    "tokens_per_step": 512,
    "pack_tokens": 256,
    "max_length": 256,
    "learning_rate": 3e-3,
    "warmup_steps": 5,
    "eval_steps": 10,
    "save_steps": 20,
    "min_save_interval_s": 1.0,
    "validation__rows": 20,
    "validation__slice_rows": 10,
    "disk__min_free_gb": 0.1,
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    command = [sys.executable, "-P", "-m", "trainer_tui.engine.toy_model"]
    subprocess.run(
        [*command, "build", str(folder), "--size", "tiny"], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The demo's generated files, by name."""
    folder = tmp_path_factory.mktemp("chats")
    command = [
        sys.executable,
        "-P",
        "-m",
        "trainer_tui.data.toy_chats",
        str(folder),
        "--rows",
        "150",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


@pytest.fixture
def person(tmp_path: Path, tiny_base: Path) -> Iterator[Person]:
    root = tmp_path / "ws"
    make_workspace(root, str(tiny_base), **SETTINGS)
    found = Person(root)
    yield found
    found.ends_everything()
    shutil.rmtree(root, ignore_errors=True)
