"""`trainer-tui config …`: read and change the settings, approve the critical ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trainer_tui.safety.errors import NoDaemon
from trainer_tui.tui.context import context, print_json
from trainer_tui.tui.verbs.training import AsJson

app = typer.Typer(help="Settings: show, set, approve.", no_args_is_help=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines |= _flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = value
    return lines


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="One key; default: all.")] = "", as_json: AsJson = False
) -> None:
    """The settings in use, and edits that wait. Without a daemon: what the file says."""
    from trainer_tui.safety import config

    try:
        found = context.client.get("/v1/config")
    except NoDaemon:
        settings = config.load(context.workspace.config_file)
        found = {"values": settings.model_dump(mode="json"), "pending": [], "daemon": False}
    found.get("values", {}).get("api", {}).update(token="(hidden)")
    flat = _flat(found["values"])
    flat.update({edit["key"]: edit["old"] for edit in found.get("pending", [])})  # still in force
    if key:
        if key not in flat:
            raise typer.BadParameter(f"unknown key {key}")
        flat = {key: flat[key]}
    if as_json:
        print_json(flat if key else found)
        return
    for name, value in flat.items():
        print(f"{name} = {value!r}")
    for edit in found.get("pending", []):
        when = str(edit.get("when", "")).replace("_", " ")
        print(f"pending: {edit['key']} {edit.get('old')!r} -> {edit.get('new')!r} ({when})")


@app.command("set")
def set_value(key: str, value: str) -> None:
    """Change one key in config.toml; comments stay. Says when it takes effect."""
    from trainer_tui.safety import config_edit

    parsed = config_edit.parse_value(value)
    try:
        reply = context.client.patch("/v1/config", {"values": {key: parsed}})
    except NoDaemon:
        config_edit.set_value(context.workspace.config_file, key, parsed)
        print(f"{key} = {value}; no daemon runs: it takes effect when one starts")
        return
    print(reply.get("text") or f"{key} = {value}")


@app.command()
def approve(key: str) -> None:
    """Let a waiting change of a critical key take effect."""
    reply = context.client.patch("/v1/config", {"approve": [key]})
    print(reply.get("text") or f"{key} approved")
