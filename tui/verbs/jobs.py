"""`trainer-tui queue …`: what waits, in which order, and changes to it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from trainer_tui.safety.text import printable
from trainer_tui.tui import columns
from trainer_tui.tui.context import context, print_json
from trainer_tui.tui.verbs.training import AsJson

app = typer.Typer(help="The queue: list, reorder, remove, retry.", no_args_is_help=True)
JobId = Annotated[int, typer.Argument(help="Job number, as in `queue list`.")]


def _row(job: dict[str, Any]) -> list[str]:
    if job["state"] == "processing":
        place = "▶"
    else:
        place = (
            str(job["place"])
            if job.get("place")
            else {"failed": "✕", "completed": "✓"}.get(job["state"], "")
        )
    note = job.get("why_waiting") or ""
    if job.get("error"):
        note = job["error"]["message"]
    if job["state"] == "processing":
        note = f"{100 * (job.get('fraction') or 0):.0f} %"
    summary = job.get("summary") or job.get("verdict") or ""
    cells = [place, f"#{job['id']}", printable(job["name"], 40), columns.count(job.get("rows"))]
    return [*cells, job["priority"], job["state"], printable(summary, 40), printable(note, 90)]


@app.command("list")
def list_jobs(
    state: Annotated[str, typer.Option(help="waiting | processing | completed | failed")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """Jobs in the order in which they will be trained, then what is done."""
    query = urlencode({"limit": limit, **({"state": state} if state else {})})
    found = context.client.get(f"/v1/jobs?{query}")
    if as_json:
        print_json(found)
        return
    if not found["jobs"]:
        print("the queue is empty; drop a .jsonl file into inbox/")
        return
    head = ["", "job", "file", "rows", "priority", "state", "report", "note"]
    print(columns.table([_row(job) for job in found["jobs"]], head))
    if found["total"] > len(found["jobs"]):
        print(f"… {found['total'] - len(found['jobs'])} more; --limit shows more")


@app.command()
def status(as_json: AsJson = False) -> None:
    """How many files are where."""
    counts = context.client.get("/v1/status")["queue"]
    if as_json:
        print_json(counts)
        return
    print("  ".join(f"{name} {number}" for name, number in counts.items()))


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """One job, with its data report."""
    found = context.client.get(f"/v1/jobs/{job}")
    if as_json:
        print_json({**found, "report": context.client.get(f"/v1/jobs/{job}/report")})
        return
    for key, value in found.items():
        if value not in (None, "", []):
            print(f"{key:18} {printable(str(value))}")


def _changed(job: dict[str, Any]) -> None:
    where = f"place {job['place']}" if job.get("place") else job["state"]
    print(f"#{job['id']} {printable(job['name'])}: {job['priority']}, {where}")


@app.command()
def move(
    job: JobId,
    before: Annotated[int | None, typer.Option(help="Ahead of this job.")] = None,
    after: Annotated[int | None, typer.Option(help="Behind this job.")] = None,
    top: Annotated[bool, typer.Option("--top")] = False,
    bottom: Annotated[bool, typer.Option("--bottom")] = False,
) -> None:
    """Move a waiting job within its priority."""
    wishes: dict[str, Any] = {}
    if before is not None:
        wishes["before"] = before
    if after is not None:
        wishes["after"] = after
    if top or bottom:
        wishes["place"] = "top" if top else "bottom"
    if len(wishes) != 1 or (top and bottom):
        raise typer.BadParameter("say one of --before ID, --after ID, --top, --bottom")
    _changed(context.client.patch(f"/v1/jobs/{job}", wishes))


@app.command()
def priority(job: JobId, level: Annotated[str, typer.Argument(help="high | normal | low")]) -> None:
    """Give a waiting job another priority; it keeps its place."""
    _changed(context.client.patch(f"/v1/jobs/{job}", {"priority": level}))


@app.command()
def remove(job: JobId) -> None:
    """Take a job out of the queue; its file goes to the trash, `undo` brings it back."""
    context.client.delete(f"/v1/jobs/{job}")
    print(f"#{job} removed; trainer-tui undo brings it back")


@app.command()
def retry(
    job: JobId,
    accept: Annotated[
        bool, typer.Option("--accept", help="Train it although its report says block.")
    ] = False,
) -> None:
    """Queue a failed or blocked job again."""
    _changed(context.client.post(f"/v1/jobs/{job}/retry", {"accept": accept}))


@app.command()
def hold(job: JobId) -> None:
    """Let a job wait until `unhold`."""
    _changed(context.client.post(f"/v1/jobs/{job}/hold"))


@app.command()
def unhold(job: JobId) -> None:
    """Let a held job run again."""
    _changed(context.client.post(f"/v1/jobs/{job}/unhold"))


@app.command("not-before")
def not_before(
    job: JobId,
    time: Annotated[str, typer.Argument(help="22:00, or 2026-11-24T22:00, local; or: now")],
) -> None:
    """Let a waiting job wait until a time; `now` lifts it."""
    at = None if time == "now" else time
    _changed(context.client.patch(f"/v1/jobs/{job}", {"not_before": at}))


@app.command()
def again(job: JobId) -> None:
    """Train a completed file once more, as a new job."""
    _changed(context.client.post(f"/v1/jobs/{job}/again"))
