"""`--torture`: many seeds and minutes; without it a short slice with one seed.

Every scenario notes its runs with `record`; a run with `--torture` writes them, merged with what
earlier runs found, into `docs/reliability.md`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import guarded
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import reliability


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--torture"))


@pytest.fixture
def seeds(torture: bool) -> list[int]:
    if not torture:
        return [1]
    first = int(os.environ.get("TORTURE_SEED", "1"))
    return list(range(first, first + int(os.environ.get("TORTURE_RUNS", "20"))))


@pytest.fixture
def rounds(torture: bool) -> int:
    """How often each fault is done: `TORTURE_ROUNDS`, 3 by default."""
    return int(os.environ.get("TORTURE_ROUNDS", "3")) if torture else 1


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, built once."""
    return guarded.tiny_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[reliability.Table]:
    table = reliability.Table()
    yield table
    if request.config.getoption("--torture"):
        table.keep()
