from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Harness, make_workspace

Serve = Callable[..., Harness]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Make a workspace with a harness for its daemon, not started; ended after the test."""
    made: list[Harness] = []

    def make(name: str = "ws", settings: str = "", **stub: Any) -> Harness:
        harness = Harness(make_workspace(tmp_path / name, settings, **stub))
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.close()
