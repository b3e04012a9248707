"""`trainer-tui versions …`: milestones of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainer_tui.safety.text import printable
from trainer_tui.tui import columns
from trainer_tui.tui.context import context, print_json
from trainer_tui.tui.verbs import version_cards
from trainer_tui.tui.verbs.training import AsJson, describe

app = typer.Typer(help="Versions: list, make, restore, roll back.", no_args_is_help=True)


def _number(text: str) -> int:
    digits = text.lower().removeprefix("v").split("_")[0]
    if not digits.isdigit():
        raise typer.BadParameter(f"{text!r} is no version; e.g. v002 or 2")
    return int(digits)


Number = Annotated[int, typer.Argument(parser=_number, metavar="vNNN", help="e.g. v002 or 2")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _print(found: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines))


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
    latest, best = found.get("latest"), found.get("best")
    rows = [version_cards.row(item, latest, best) for item in found["versions"]]
    print(columns.table(rows, head))


@app.command()
def show(number: Number, as_json: AsJson = False) -> None:
    """One version's card: where it stands, what its files did, what came since."""
    found = context.client.get(f"/v1/versions/{number}")
    _print(found, as_json, version_cards.card(found))


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
    bool | None,
    typer.Option(
        "--requeue/--no-requeue",
        help="Whether files trained since go back to the queue. Asked for; with --yes they do not.",
        show_default=False,
    ),
]
KEPT = "The current model is kept as an emergency backup."


def _since(found: dict[str, Any]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = found.get("files_since", [])
    if files:
        print(f"undoes what {len(files)} file(s) taught since:")
    for file in files:
        print(f"  #{file['job_id']} {printable(file['name'])}")
    if problem := found.get("files_since_problem"):
        print(f"{version_cards.UNKNOWN}: {printable(problem)}")
    return files


def _without_optimizer(version: dict[str, Any], weights_only: bool) -> str:
    if not (weights_only or version.get("weights_only")):
        return ""
    return "it comes without its optimizer, so the learning rate warms up again. "


def _wants_requeue(files: list[dict[str, Any]], wanted: bool | None, yes: bool) -> bool:
    if wanted is not None or not files or yes:
        return bool(wanted)
    them = "this file" if len(files) == 1 else f"these {len(files)} files"
    return typer.confirm(f"put {them} back into the queue?", default=False)


def _tell_restored(reply: dict[str, Any]) -> None:
    """Where training is now, what the version lacked, and what waits again."""
    restored = reply["restored"]
    kept = (restored.get("emergency") or "").split("_")[0]
    print(
        f"{printable(restored['source'])} is the current model, as step {restored['global_step']}"
        + (f"; what was there is kept as {kept}" if kept else "")
    )
    for note in [*restored.get("notes", []), *reply.get("not_requeued", [])]:
        print(f"  {printable(note)}")
    for job in reply.get("requeued", []):
        print(f"  {printable(job['name'])} waits again as #{job['id']}")
    for text in reply.get("withdrawn", []):
        print(f"  {printable(text)}")
    print(describe(reply["status"]))


@app.command()
def restore(
    number: Number, yes: Yes = False, weights_only: WeightsOnly = False, requeue: Requeue = None
) -> None:
    """Train on from a version; what is now stays as an emergency backup."""
    version = context.client.get(f"/v1/versions/{number}")
    files = _since(version)
    _confirm(f"{_without_optimizer(version, weights_only)}go back to v{number:03d}? {KEPT}", yes)
    again = _wants_requeue(files, requeue, yes)
    body = {"weights_only": weights_only, "requeue": again}
    _tell_restored(context.client.post(f"/v1/versions/{number}/restore", body))


@app.command()
def rollback(yes: Yes = False, weights_only: WeightsOnly = False, requeue: Requeue = None) -> None:
    """Restore the version before the state of now."""
    target = context.client.get("/v1/versions/rollback")
    files = _since(target)
    number = target["version"]["number"]
    lacking = _without_optimizer(target["version"], weights_only)
    _confirm(f"{lacking}roll back to v{number:03d}? {KEPT}", yes)
    again = _wants_requeue(files, requeue, yes)
    body = {"version": number, "weights_only": weights_only, "requeue": again}
    _tell_restored(context.client.post("/v1/versions/rollback", body))


@app.command()
def diff(first: Number, second: Number, as_json: AsJson = False) -> None:
    """What lies between two versions: files, validation, settings."""
    found = context.client.get(f"/v1/versions/diff/{first}/{second}")
    _print(found, as_json, version_cards.difference(found))


@app.command()
def graph(as_json: AsJson = False) -> None:
    """How the versions grew from one another, restores and branches; newest on top."""
    found = context.client.get("/v1/versions/lineage")
    drawing = [printable(line) for line in found["drawing"]]
    _print(found, as_json, drawing or ["no version and no checkpoint yet"])


@app.command()
def export(
    number: Number,
    folder: Annotated[Path, typer.Argument(help="A new folder; it must not exist yet.")],
    optimizer: Annotated[bool, typer.Option("--optimizer", help="Its optimizer too.")] = False,
) -> None:
    """Copy a version to a folder anywhere, every hash checked."""
    body = {"path": str(Path.cwd() / folder.expanduser()), "optimizer": optimizer}
    made = context.client.post(f"/v1/versions/{number}/export", body)
    print(f"v{number:03d} is in {printable(made['path'])}")


emergency = typer.Typer(help="What was there before each restore: list, go back to.")
app.add_typer(emergency, name="emergencies")


@emergency.callback(invoke_without_command=True)
def list_emergencies(invoked: typer.Context, as_json: AsJson = False) -> None:
    if invoked.invoked_subcommand is not None:
        return
    found = context.client.get("/v1/versions/emergencies")
    rows = [
        [
            f"e{entry['number']:03d}",
            version_cards.plain(entry.get("global_step")),
            version_cards.minute(entry.get("at")),
            printable(entry.get("why") or "", 60),
            "" if entry["state"] == "ok" else printable(entry.get("problem") or entry["state"]),
        ]
        for entry in found["emergencies"]
    ]
    table = columns.table(rows, ["", "step", "kept", "why", ""])
    _print(found, as_json, table.splitlines() if rows else ["no restore yet, so no backup of one"])


def _emergency_number(text: str) -> int:
    digits = text.lower().removeprefix("e").split("_")[0]
    if not digits.isdigit():
        raise typer.BadParameter(f"{text!r} is no emergency backup; e.g. e002 or 2")
    return int(digits)


@emergency.command("restore")
def restore_emergency(
    number: Annotated[int, typer.Argument(parser=_emergency_number, metavar="eNNN")],
    yes: Yes = False,
    requeue: Requeue = None,
) -> None:
    """Undo a restore: train on from what was there before it."""
    files = _since(context.client.get(f"/v1/versions/emergencies/{number}"))
    _confirm(f"go back to e{number:03d}? The current model is kept as one more of them.", yes)
    body = {"requeue": _wants_requeue(files, requeue, yes)}
    _tell_restored(context.client.post(f"/v1/versions/emergencies/{number}/restore", body))


@app.command()
def trash(as_json: AsJson = False) -> None:
    """Deleted versions that can be brought back."""
    found = context.client.get("/v1/versions/trash")
    rows = [
        [
            printable(entry["name"]),
            version_cards.minute(entry["deleted_at"]),
            version_cards.minute(entry.get("keep_until")),
            printable(entry["why"], 60),
        ]
        for entry in found["trashed"]
    ]
    table = columns.table(rows, ["", "deleted", "kept until", "why"])
    _print(found, as_json, table.splitlines() if rows else ["the trash holds no version"])


@app.command()
def undelete(number: Number) -> None:
    """Take a version back out of the trash."""
    context.client.post(f"/v1/versions/{number}/undelete")
    print(f"v{number:03d} is back")


@app.command()
def verify(number: Number, as_json: AsJson = False) -> None:
    """Hash every file of a version and open every tensor."""
    found = context.client.post(f"/v1/versions/{number}/verify")
    read = f"{columns.size(found['bytes'])} in {found['seconds']:.1f} s"
    verdict = f"intact ({found['files']} files, {read})"
    if not found["ok"]:
        verdict = f"damaged: {printable(found['problem'])}"
    _print(found, as_json, [f"{printable(found['name'])} is {verdict}"])
    if not found["ok"]:
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
    done = context.client.delete(f"/v1/versions/{number}")
    until = version_cards.minute((done.get("trashed") or {}).get("keep_until"))
    print(f"v{number:03d} is in the trash until {until}: trainer-tui versions undelete {number}")
