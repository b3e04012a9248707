"""Promises of the repository itself: packaging, layers that a linter cannot see, house rules."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trainer_tui.safety import config, config_edit

ROOT = Path(__file__).parent.parent
ROOMS = ("tui", "daemon", "engine", "data", "queue", "safety", "versions")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

# Files allowed over 400 lines, each with its reason.
LONG_FILES: dict[str, str] = {}

FORBIDDEN = (
    r"\bpickle\.",
    r"\btorch\.load\(",
    r"trust_remote_code\s*=\s*True",
    r"shell\s*=\s*True",
    r"os\.system\(",
    r"(?<![\w.])eval\(",
    r"(?<![\w.])exec\(",
    r"except\s*:",
)


def test_standard_queue_survives_in_the_repo_root() -> None:
    code = "import queue, asyncio; assert queue.Queue; print(queue.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert str(ROOT / "queue") not in done.stdout
    assert not (ROOT / "queue" / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_only_the_engine_imports_torch(room: str) -> None:
    named = [
        path.relative_to(ROOT)
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"^\s*(import|from) torch\b", path.read_text(), re.MULTILINE)
    ]
    assert named == [] or room == "engine"


def test_the_daemon_starts_without_torch_or_transformers() -> None:
    code = (
        "import sys, trainer_tui.daemon.daemon, trainer_tui.daemon.run;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'textual'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_verbs_start_without_textual_or_httpx() -> None:
    code = (
        "import sys, trainer_tui.tui.cli;"
        "heavy = {'textual', 'httpx', 'torch', 'pydantic', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_dangerous_calls_are_nowhere(pattern: str) -> None:
    # Model code has a method called eval(): only the bare built-in is meant.
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(pattern, line) and not line.lstrip().startswith(("#", '"""'))
    ]
    assert found == []


def test_no_file_is_over_400_lines_without_a_reason() -> None:
    long = {
        str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400
    }
    assert long <= set(LONG_FILES)


def test_root_config_is_the_commented_default() -> None:
    assert (ROOT / "config.toml").read_text() == config_edit.default_text()


def test_default_config_names_every_key_with_its_default() -> None:
    values = tomllib.loads(config_edit.default_text())
    sections = {
        f"{key}.{inner}"
        for key, value in values.items()
        if isinstance(value, dict)
        for inner in value
    }
    flat = sections | {key for key, value in values.items() if not isinstance(value, dict)}
    assert flat == set(config.known_keys()) - set(config.ALIASES)
    assert config.parse(config_edit.default_text(), ROOT / "config.toml") == config.Config()


def test_a_wheel_has_every_folder_of_code() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    assert set(listed) == {f"trainer_tui.{'.'.join(folder.parts)}" for folder in folders}


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=\[]", item)[0] for item in wanted}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    missing = {name for name in names if name.removeprefix("pytest") not in text}
    missing -= {name for name in missing if name.startswith("types-")}
    assert missing == set()


def test_docs_have_no_paths_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".md", ".py", ".toml", ".service") and path.is_file():
            assert not re.search(r"(^|[^a-z.])/(work|root)/", path.read_text()), name


def test_the_readme_shows_the_keys_of_the_action_table() -> None:
    command = [sys.executable, "-P", "-m", "trainer_tui.tui.actions"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert table in (ROOT / "README.md").read_text()


def test_the_readme_links_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`((?:docs|tests)/[^`*]+)`", text)
    assert [name for name in linked if not (ROOT / name).exists()] == []
