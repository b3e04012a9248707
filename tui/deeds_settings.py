"""Deeds on settings: change one, approve an edit, choose the model. See `deeds`.

Invariant: a value is refused by the daemon's schema alone, and what it says stands in the dialog.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainer_tui.safety.text import printable
from trainer_tui.tui.remote import Declined
from trainer_tui.tui.situation import GUARDED

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

MODEL_FILES = ("config.json", "tokenizer.json")
HIDDEN = frozenset({"api.token"})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; tables that a person fills stay whole."""
    lines: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" != "screen.keys":
            lines |= flat(value, f"{prefix}{name}.")
        else:
            lines[f"{prefix}{name}"] = value
    return {name: value for name, value in lines.items() if name not in HIDDEN}


def toml_of(value: object) -> str:
    """A value as one writes it in config.toml."""
    return msgspec.json.encode(value).decode() if value is not None else ""


async def _settings(app: TrainerApp) -> dict[str, Any]:
    document = msgspec.json.decode(await app.backend.get("/v1/config"))
    return flat(document.get("values") or {}) if isinstance(document, dict) else {}


async def change_setting(app: TrainerApp) -> None:
    """Key, then value; a refusal is shown where it can be mended."""
    values = await _settings(app)
    key, problem = "", ""
    while key not in values:
        question = "Which setting? → completes it."
        asked = await app.ask("Change a setting", question, key, problem, sorted(values))
        if asked is None:
            return
        key, problem = asked, f"there is no setting {printable(asked, 40)!r}"
    text, problem = toml_of(values[key]), ""
    while True:
        question = f"{key} is {toml_of(values[key])}. The new value:"
        asked = await app.ask("Change a setting", question, text, problem)
        if asked is None:
            return
        text = asked
        try:
            answer = await app.change("PATCH", "/v1/config", {"values": {key: _value(text)}})
        except Declined as refusal:
            problem = refusal.message + (f" ({refusal.hint})" if refusal.hint else "")
            continue
        said = str(answer.get("text") or "") if isinstance(answer, dict) else ""
        app.say(f"{app.glyphs.check} {printable(said, 120) or f'{key} is edited'}", "good")
        return


def _value(text: str) -> Any:
    from trainer_tui.safety import config_edit  # tomlkit: only when a setting is changed

    return config_edit.parse_value(text)


async def show_settings(app: TrainerApp) -> None:
    document = msgspec.json.decode(await app.backend.get("/v1/config"))
    lines = [printable(str(document.get("file") or ""), 200), ""]
    waiting = [pending_words(item) for item in document.get("pending") or []]
    if waiting:
        lines += ["edits that wait:", *(f"  {printable(text, 120)}" for text in waiting), ""]
    values = flat(document.get("values") or {})
    lines += [f"{name} = {printable(toml_of(value), 120)}" for name, value in values.items()]
    await app.show_page("Settings", lines)


def guarded(pending: list[Any]) -> list[Any]:
    """The edits that act only when somebody approves them."""
    return [item for item in pending if not isinstance(item, dict) or _needs_approval(item)]


def _needs_approval(item: Mapping[str, Any]) -> bool:
    return bool(item.get("when", GUARDED) == GUARDED)


async def approve(app: TrainerApp) -> None:
    status = app.view.status
    waiting = guarded(list(status.config.pending)) if status else []
    lines = [printable(pending_words(item), 100) for item in waiting]
    if await app.confirm("Approve this change of the configuration?", lines):
        answer = await app.change("PATCH", "/v1/config", {"approve": True})
        text = str(answer.get("text") or "") if isinstance(answer, dict) else ""
        app.say(f"{app.glyphs.check} {printable(text, 120) or 'approved'}", "good")


def pending_words(item: object) -> str:
    if isinstance(item, dict):
        key, old, new = (item.get(name) for name in ("key", "old", "new"))
        return f"{key}: {old} → {new}" if key else str(item)
    return str(item)


async def choose_model(app: TrainerApp) -> None:
    """A model folder or a hub id, before the first step: nothing trained depends on it yet."""
    values = await _settings(app)
    text, problem = str(values.get("base_model") or ""), ""
    question = "A folder with a model on the daemon's machine, or a name like Qwen/Qwen3-0.6B:"
    while True:
        asked = await app.ask("The model to train", question, text, problem)
        if asked is None:
            return
        text = asked
        problem = folder_problem(text, _root(app))
        if problem:
            continue
        wanted = {k: v for k, v in _model(text, _root(app)).items() if values.get(k) != v}
        if not wanted:
            app.say("that is the model already", "dim")
            return
        try:
            await app.change("PATCH", "/v1/config", {"values": wanted, "approve": sorted(wanted)})
        except Declined as refusal:
            problem = refusal.message
            continue
        app.say(f"{app.glyphs.check} the model is {printable(text, 80)}", "good")
        app.examine_again()
        return


def folder_problem(text: str, root: Path | None) -> str:
    """Why this is no model; empty when it may be one. A hub id is looked at by the hub alone."""
    if not text:
        return "nothing was named"
    folder = _folder(text, root)
    if folder.is_dir():
        lacks = [name for name in MODEL_FILES if not (folder / name).is_file()]
        return f"{printable(str(folder), 80)} lacks {' and '.join(lacks)}" if lacks else ""
    hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    return "" if hub_id else f"there is no folder {printable(str(folder), 80)}"


def _folder(text: str, root: Path | None) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() or root is None else root / path


def _model(text: str, root: Path | None) -> dict[str, object]:
    from trainer_tui.tui.workspace_setup import model_values

    folder = _folder(text, root)
    return model_values(str(folder) if folder.is_dir() else text)


def _root(app: TrainerApp) -> Path | None:
    status = app.view.status
    return Path(status.daemon.workspace) if status and status.daemon.workspace else None
