"""Every command and option that a hint, a setting or a page names can be typed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import typer

from trainer_tui.tui.cli import app

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("*.py", "*.md", "*.toml", "*.service")
NAMED = re.compile(r"trainer-tui((?: [A-Za-z0-9./=_~-]+)+)")
PROSE = {"that", "comes", "starts", "daemon", "="}  # "the trainer-tui that started the file"


def unknown(words: list[str]) -> str:
    """The first word of a command line that the command line tool does not know."""
    node, skip = typer.main.get_command(app), False
    for word in words:
        if skip:
            skip = False
        elif word in ("-w", "--workspace"):
            skip = True
        elif word.startswith("-"):
            known = {
                one for option in node.params for one in (*option.opts, *option.secondary_opts)
            }
            option = word.split("=")[0].rstrip(".")
            if option not in known | {"-h", "--help", "-"}:
                return option
        elif hasattr(node, "commands"):
            if word.rstrip(".") not in node.commands:
                return "" if word in PROSE else word
            node = node.commands[word.rstrip(".")]
    return ""


def test_every_named_command_can_be_typed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", *KINDS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, wrong = 0, []
    for name in listed.stdout.split():
        if name.startswith("tests/"):
            continue
        for match in NAMED.finditer((ROOT / name).read_text()):
            found += 1
            if word := unknown(match.group(1).split()):
                wrong.append(f"{name}: {match.group(0)} ({word})")
    assert found > 100, "the search finds what it should"
    assert not wrong


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert unknown(["--help-keys"]) == "--help-keys"
    assert unknown(["queue", "dance", "3"]) == "dance"
    assert unknown(["queue", "retry", "3", "--accept"]) == ""
    assert unknown(["stop", "--now", "--everything"]) == "--everything"
