"""`trainer-tui backup …`: real copies of the versions on another disk."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import printable
from trainer_tui.tui import columns
from trainer_tui.tui.context import context, print_json
from trainer_tui.tui.verbs import version_cards
from trainer_tui.tui.verbs.training import AsJson
from trainer_tui.tui.verbs.versions import Number

app = typer.Typer(help="The second location: copy now, look, bring back.", no_args_is_help=True)
LOOK_EVERY_S = 0.25


@app.command()
def status(as_json: AsJson = False) -> None:
    """What is at the second location, what is missing there, what is copied now."""
    found = context.client.get("/v1/backup")
    if as_json:
        print_json(found)
    else:
        print("\n".join(_card(found)))


def _card(found: dict[str, Any]) -> list[str]:
    if not found["location"]:
        return ["no second location; set versioning.second_location to a folder on another disk"]
    lines = [f"second location  {printable(found['location'])}"]
    if found["problem"]:
        lines.append(f"  cannot be used: {printable(found['problem'])}")
    if found["same_disk"]:
        lines.append("  the same disk as the models: a bad disk takes both")
    size = f"{columns.size(found['bytes'])}, {columns.size(found['free_bytes'])} free"
    lines.append(f"  {len(found['copied'])} versions there, {size}")
    lines.append(f"  missing: {_names(found['missing'])}")
    if found["partial"]:
        lines.append(f"  begun, not whole: {_names(found['partial'])}")
    lines.append(f"  last run: {version_cards.minute(found['last_run_at'])}")
    last = found.get("last") or {}
    for problem in [last.get("problem"), *(last.get("problems") or ())]:
        if problem:
            lines.append(f"  last problem: {printable(problem)}")
    if found["running"]:
        lines.append(f"  now: {_progress(found)}")
    return lines


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(printable(name) for name in names[:8]) + more) or "none"


def _progress(found: dict[str, Any]) -> str:
    at = found.get("copying")
    if not at:
        return "looking at what is there"
    done = f"{columns.size(at['copied_bytes'])} of {columns.size(at['bytes'])}"
    return f"copying {printable(at['version'])}: {done}"


@app.command()
def now(
    start_over: Annotated[
        bool, typer.Option("--start-over", help="The second disk was emptied on purpose.")
    ] = False,
) -> None:
    """Copy what is missing and read it back. Ctrl-C leaves it running."""
    found = context.client.post("/v1/backup", {"wait": False, "start_over": start_over})
    told = ""
    while found["running"]:
        at = (found.get("copying") or {}).get("version", "")
        if at and at != told:
            print(f"copying {printable(told := at)} …", flush=True)
        time.sleep(LOOK_EVERY_S)
        found = context.client.get("/v1/backup")
    last = found.get("last") or {}
    for problem in last.get("problems") or ():
        print(printable(problem))
    if last.get("problem"):
        raise Refused(last["problem"])
    copied, already = last.get("copied") or [], last.get("already") or []
    print(f"copied: {_names(copied)}; there already: {len(already)}")


@app.command()
def fetch(number: Number) -> None:
    """Bring a lost or damaged version back from there."""
    found = context.client.post(f"/v1/backup/fetch/{number}")
    print(f"{printable(found['name'])} is back and intact")
