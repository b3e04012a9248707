"""`--torture`: many seeds and minutes; without it a short slice with one seed."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> list[int]:
    if not request.config.getoption("--torture"):
        return [1]
    first = int(os.environ.get("TORTURE_SEED", "1"))
    return list(range(first, first + int(os.environ.get("TORTURE_RUNS", "20"))))
