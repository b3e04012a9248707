"""`trainer-tui versions …`: milestones of the model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import printable
from trainer_tui.tui import columns
from trainer_tui.tui.context import context, print_json
from trainer_tui.tui.verbs.training import AsJson, describe

app = typer.Typer(help="Versions: list, make, restore, roll back.", no_args_is_help=True)


def _number(text: str) -> int:
    digits = text.lower().removeprefix("v").split("_")[0]
    if not digits.isdigit():
        raise typer.BadParameter(f"{text!r} is no version; e.g. v002 or 2")
    return int(digits)


Number = Annotated[int, typer.Argument(parser=_number, metavar="vNNN", help="e.g. v002 or 2")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _row(version: dict[str, Any], latest: int | None) -> list[str]:
    marks = [
        mark
        for mark, there in (
            ("latest", version["number"] == latest),
            ("pinned", version.get("pinned")),
            ("weights only", version.get("weights_only")),
            (version.get("state", ""), version.get("state") not in (None, "ok")),
        )
        if there
    ]
    val = (version.get("validation") or {}).get("fixed")
    cells = [f"v{version['number']:03d}", str(version["global_step"]), columns.figure(val)]
    cells += [version["created_at"][:16].replace("T", " "), columns.size(version.get("bytes"))]
    return [*cells, printable(version.get("description") or "", 50), ", ".join(marks)]


@app.command("list")
def list_versions(as_json: AsJson = False) -> None:
    """All versions, newest first."""
    found = context.client.get("/v1/versions")
    if as_json:
        print_json(found)
        return
    if not found["versions"]:
        print("no version yet; make one with: trainer-tui versions create -m '…'")
        return
    head = ["", "step", "val loss", "made", "size", "description", ""]
    print(columns.table([_row(item, found.get("latest")) for item in found["versions"]], head))


@app.command()
def show(number: Number, as_json: AsJson = False) -> None:
    """One version's card."""
    found = context.client.get(f"/v1/versions/{number}")
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        print(f"{key:14} {printable(str(value))}")


@app.command()
def create(
    message: Annotated[str, typer.Option("--message", "-m", help="What is special about it.")] = "",
) -> None:
    """Make a version of the model as it is now."""
    made = context.client.post("/v1/versions", {"description": message})
    print(f"v{made['number']:03d} made at step {made['global_step']}: {made['name']}")


def _confirm(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question, default=False):
        raise typer.Exit(1)


WeightsOnly = Annotated[
    bool, typer.Option("--weights-only", help="Leave its optimizer out; training warms up again.")
]
Requeue = Annotated[
    bool, typer.Option("--requeue", help="Queue the files trained since once more.")
]


def _since(found: dict[str, Any]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = found.get("files_since", [])
    if files:
        print(f"undoes what {len(files)} file(s) taught since:")
    for file in files:
        print(f"  #{file['job_id']} {printable(file['name'])}")
    return files


def _requeue(files: list[dict[str, Any]], wanted: bool) -> None:
    for file in files if wanted else ():
        try:
            job = context.client.post(f"/v1/jobs/{file['job_id']}/again")
        except Refused as problem:
            print(f"  #{file['job_id']} stays out of the queue: {problem.message}")
            continue
        print(f"  {printable(file['name'])} waits again as #{job['id']}")


@app.command()
def restore(
    number: Number, yes: Yes = False, weights_only: WeightsOnly = False, requeue: Requeue = False
) -> None:
    """Train on from a version; what is now stays as an emergency backup."""
    files = _since(context.client.get(f"/v1/versions/{number}"))
    _confirm(f"go back to v{number:03d}? The current model is kept as an emergency backup.", yes)
    body = {"weights_only": weights_only}
    reply = context.client.post(f"/v1/versions/{number}/restore", body)
    print(describe(reply["status"]) if "status" in reply else f"restored v{number:03d}")
    _requeue(files, requeue)


@app.command()
def rollback(yes: Yes = False, weights_only: WeightsOnly = False, requeue: Requeue = False) -> None:
    """Restore the version before the state of now."""
    target = context.client.get("/v1/versions/rollback")
    files = _since(target)
    number = target["version"]["number"]
    _confirm(f"roll back to v{number:03d}? The current model is kept as a backup.", yes)
    reply = context.client.post("/v1/versions/rollback", {"weights_only": weights_only})
    print(describe(reply["status"]) if "status" in reply else "rolled back")
    _requeue(files, requeue)


@app.command()
def diff(first: Number, second: Number) -> None:
    """What lies between two versions: files, validation, settings."""
    print_json(context.client.get(f"/v1/versions/diff/{first}/{second}"))


@app.command()
def undelete(number: Number) -> None:
    """Take a version back out of the trash."""
    context.client.post(f"/v1/versions/{number}/undelete")
    print(f"v{number:03d} is back")


@app.command()
def verify(number: Number) -> None:
    """Hash every file of a version and open every tensor."""
    found = context.client.post(f"/v1/versions/{number}/verify")
    print_json(found)
    if found.get("state", "ok") != "ok":
        raise typer.Exit(1)


@app.command()
def pin(number: Number) -> None:
    """Keep a version whatever retention says."""
    context.client.post(f"/v1/versions/{number}/pin")
    print(f"v{number:03d} pinned")


@app.command()
def unpin(number: Number) -> None:
    """Let retention have a version again."""
    context.client.post(f"/v1/versions/{number}/unpin")
    print(f"v{number:03d} unpinned")


@app.command()
def delete(number: Number, yes: Yes = False) -> None:
    """Move a version to the trash."""
    _confirm(f"delete v{number:03d}?", yes)
    context.client.delete(f"/v1/versions/{number}")
    print(f"v{number:03d} is in the trash")
