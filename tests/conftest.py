"""What every test may use: the modules of `tests/support` by plain import."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="many seeds, for hours if need be")
    parser.addoption("--gpu", action="store_true", help="use the GPU, and run the tests for it")


def pytest_configure(config: pytest.Config) -> None:
    """Without `--gpu` a machine with a card runs the same tests in the same way as one without."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--gpu"):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and --gpu"))


def _of_this_process() -> tuple[str, int, tuple[int, int]]:
    """umask, niceness and CPU limit; the mask is read where reading it does not change it."""
    mask = next(x for x in Path("/proc/self/status").read_text().splitlines() if "Umask" in x)
    return mask, os.nice(0), resource.getrlimit(resource.RLIMIT_CPU)


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was() -> Iterator[None]:
    """What a test does to its process for good would befall every test after it."""
    before = _of_this_process()
    yield
    assert _of_this_process() == before
