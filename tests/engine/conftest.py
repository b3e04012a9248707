"""Shared by the engine's tests: one tiny model, one thread, workspaces with jobs in them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: bit-equality wants one thread
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from engine_driver import Driver, drivers  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 29,000-parameter Qwen3 with dropout, so that a resume has to restore random state."""
    from trainer_tui.engine import toy_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    toy_model.build(folder, seed=3, size="tiny")
    return folder


@pytest.fixture
def make_driver(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[..., Driver]]:
    with drivers(tmp_path, tiny_model) as make:
        yield make
    for path in tmp_path.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
