"""Changes to `config.toml` that keep its comments, and the making of a first one."""

from __future__ import annotations

import difflib
import stat
from collections.abc import MutableMapping
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from trainer_tui.safety import config, durable
from trainer_tui.safety.errors import ConfigProblem


def default_text() -> str:
    """The commented default `config.toml`."""
    return (resources.files("trainer_tui.safety") / "default_config.toml").read_text("utf-8")


def set_value(path: Path, key: str, value: Any) -> config.Config:
    """Write one key (`max_length`, `retention.checkpoints`) and return the new settings.

    The edit is checked as a whole before anything is written.

    Raises:
        ConfigProblem: unknown key, wrong value, or the file itself is broken.
    """
    return set_values(path, {key: value})


def set_values(path: Path, values: dict[str, Any]) -> config.Config:
    """Like `set_value` for several keys at once: all of them or none."""
    config.load(path)  # the file as it stands: missing, a link, not UTF-8 or broken is said here
    text = edited(path.read_text("utf-8"), values, path)
    checked = config.parse(text, path)
    durable.replace(path, text.encode(), stat.S_IMODE(path.stat().st_mode))
    return checked


def edited(text: str, values: dict[str, Any], path: Path) -> str:
    """The text of a config file with other values; comments and order stay.

    Raises:
        ConfigProblem: an unknown key, or the text is no TOML.
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as problem:
        raise ConfigProblem(f"{path}: {problem}", "the file is TOML: key = value") from None
    for key, value in values.items():
        _require_known(key)
        section, _, name = _name_in_use(document, key).rpartition(".")
        table: Any = document
        for part in section.split(".") if section else ():
            table = table.setdefault(part, tomlkit.table())
            if not isinstance(table, MutableMapping):
                raise ConfigProblem(f"{path}: {part} is not a section", f"write it as [{part}]")
        table[name] = value
    return tomlkit.dumps(document)


def _name_in_use(document: tomlkit.TOMLDocument, key: str) -> str:
    """A key that the file spells by its other name keeps that spelling, and is not there twice."""
    for alias, real in config.ALIASES.items():
        if key == real and alias in document:
            return alias
        if key == alias and real in document:
            return real
    return key


def _require_known(key: str) -> None:
    known = config.known_keys()
    if key in known or key.startswith("screen.keys."):
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    raise ConfigProblem(
        f"unknown key {key}", f"did you mean {near[0]}?" if near else "trainer-tui config show"
    )


def parse_value(text: str) -> Any:
    """A value typed on a command line: TOML if it reads as TOML, else the text itself."""
    try:
        return tomlkit.parse(f"value = {text}").unwrap()["value"]
    except TOMLKitError:
        return text
