"""Verbs that steer the training, and the ones that say how it goes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from trainer_tui.safety import processes
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.text import printable
from trainer_tui.tui import columns
from trainer_tui.tui.context import context, print_json

DAEMON_END_S = 330.0  # what it allows the trainer's last step and commit, and a little
Force = Annotated[bool, typer.Option("--force", help="Also what somebody else did.")]
AsJson = Annotated[bool, typer.Option("--json", help="The API's document, for programs.")]


def register(app: typer.Typer) -> None:
    for verb in (
        status,
        pause,
        resume,
        stop,
        skip,
        rate,
        checkpoint,
        add,
        undo,
        redo,
        incidents,
        events,
        disk,
    ):
        app.command()(verb)


def status(as_json: AsJson = False) -> None:
    """What is going on now."""
    document = context.client.get("/v1/status")
    if as_json:
        print_json(document)
    else:
        print(describe(document))


def describe(document: dict[str, Any]) -> str:
    """The status as a few lines for people."""
    training, queue, model = document["training"], document["queue"], document["model"]
    lines = [
        f"{training['state'].upper()}  {model.get('name') or 'no model'}"
        f"  step {training.get('global_step') or 0}"
    ]
    if training.get("reason"):
        lines.append(f"  {printable(training['reason'])}")
    job = training.get("job")
    if job and job["steps"]:
        lines.append(
            f"  #{job['id']} {printable(job['name'])}: step {job['step']} of {job['steps']}"
            f" ({100 * job['fraction']:.0f} %), {columns.duration(training.get('eta_job_s'))} left"
        )
    lines.append(
        f"  loss {columns.figure(training.get('loss'))}"
        f"  val {columns.figure(training.get('val_loss'))}"
        f"  lr {training.get('learning_rate') or 0:.2g}{_factor(training)}"
        f"  {columns.count(training.get('tokens_per_s'))} tok/s"
    )
    lines.append(
        f"  queue: {queue['waiting']} waiting, {queue['processing']} begun,"
        f" {queue['recently_completed']} completed, {queue['failed']} failed"
    )
    lines.append(_machine_line(document["machine"]))
    problem = document["config"].get("problem")
    if problem:
        lines.append(f"  config: {printable(str(problem))}")
    return "\n".join(lines)


def _machine_line(machine: dict[str, Any]) -> str:
    parts = []
    for gpu in machine.get("gpus", ()):
        memory = (
            f"{columns.size(gpu['memory_used_bytes'])}/{columns.size(gpu['memory_total_bytes'])}"
        )
        parts.append(f"GPU{gpu['index']} {gpu['utilisation_percent']} % {memory}")
    used, total = machine.get("memory_used_bytes"), machine.get("memory_total_bytes")
    parts.append(f"RAM {columns.size(used)}/{columns.size(total)}")
    place = printable(machine.get("disk_place") or "")
    of = f" of {place}" if place else ""
    parts.append(f"disk{of} {columns.size(machine.get('disk_free_bytes'))} free")
    return "  " + "  ".join(parts)


def _factor(training: dict[str, Any]) -> str:
    factor = training.get("lr_factor") or 1.0
    return "" if factor == 1.0 else f" (x {factor:g})"


def _steer(verb: str, body: dict[str, Any] | None = None) -> None:
    reply = context.client.post(f"/v1/training/{verb}", body)
    print(describe(reply.get("status", reply)))


def pause(
    release: Annotated[bool, typer.Option("--free-gpu", help="Also free the GPU.")] = False,
) -> None:
    """Pause after this step, with a checkpoint."""
    _steer("pause", {"release": release})


def resume() -> None:
    """Go on."""
    _steer("resume")


def stop(
    now: Annotated[
        bool, typer.Option("--now", help="After this step, not after this file.")
    ] = False,
    kill: Annotated[
        bool, typer.Option("--kill", help="At once: steps no checkpoint holds are lost.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --kill: do not ask.")] = False,
    daemon: Annotated[
        bool,
        typer.Option("--daemon", help="End the daemon: it saves; the next one goes on training."),
    ] = False,
) -> None:
    """Stop training after the current file. The daemon stays up; `resume` starts again."""
    if kill:
        _kill(yes)
    elif now or not daemon:
        _steer("stop", {"now": now})
    if daemon:
        _end_daemon()


def _end_daemon() -> None:
    """SIGTERM, and wait until it has saved and gone."""
    pid = context.client.get("/v1/status")["daemon"]["pid"]
    process = processes.identify(pid)
    if process is None:
        raise Refused("the daemon does not run on this machine", "end it where it runs")
    processes.send(process, signal.SIGTERM)
    print(f"daemon {pid} saves and ends…", flush=True)
    if not processes.wait_gone(process, DAEMON_END_S):
        raise Refused(f"daemon {pid} still runs after {DAEMON_END_S:g} s", "trainer-tui logs")
    print("ended")


def _kill(yes: bool) -> None:
    unsaved = context.client.get("/v1/status")["training"].get("unsaved_steps") or 0
    if not yes and typer.prompt(f"{unsaved} unsaved steps would be lost. Type kill") != "kill":
        raise Refused("nothing was killed", "--yes kills without asking")
    found = context.client.post("/v1/training/kill")
    print(f"killed: {found['lost_steps']} unsaved steps are lost; resume goes on")


def skip(
    job: Annotated[int | None, typer.Argument(help="Job number; default: the current one.")] = None,
) -> None:
    """Set the current file aside; what it taught stays, `queue retry` goes on from there."""
    _steer("skip", {"job": job} if job is not None else {})


def rate(
    factor: Annotated[
        float | None,
        typer.Argument(help="What to multiply learning_rate with, 0.02 to 4; 1: as it is set."),
    ] = None,
) -> None:
    """Show or set what the learning rate is multiplied with; `halve_lr` of a ladder halves it."""
    if factor is not None:
        _steer("rate", {"factor": factor})
    training = context.client.get("/v1/status")["training"]
    now = training.get("learning_rate")
    print(
        f"learning_rate x {training.get('lr_factor', 1):g}"
        + (f"; {now:.2g} in the last step" if now else "")
    )


def checkpoint() -> None:
    """Save a checkpoint now."""
    _steer("checkpoint")


def add(
    file: Path,
    priority: Annotated[
        str, typer.Option("--priority", "-p", help="high | normal | low")
    ] = "normal",
    again: Annotated[bool, typer.Option("--again", help="Even if it was trained before.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Although its data report blocks it.")
    ] = False,
) -> None:
    """Queue a copy of a file."""
    if priority not in ("high", "normal", "low"):
        raise typer.BadParameter(
            f"{priority!r} is not high, normal or low", param_hint="--priority"
        )
    path = str(file.absolute())
    if any("\udc80" <= char <= "\udcff" for char in path):
        # A byte that is no UTF-8, as Python has it; JSON has no way to say it.
        raise Refused(
            f"{printable(path)} cannot be named to the daemon: the name is not UTF-8",
            f"rename it, or copy it into {context.workspace.inbox}, where any name is taken",
        )
    body = {"path": path, "priority": priority, "again": again, "accept": accept}
    job = context.client.post("/v1/jobs", body)
    print(f"#{job['id']} {printable(job['name'])}: {job.get('summary') or job['state']}")
    if job["state"] == "failed":
        problem = job.get("error") or {}
        print(f"  {problem.get('message', '')}\n  hint: {problem.get('hint', '')}")
        raise typer.Exit(1)


def undo(force: Force = False) -> None:
    """Take back the last change to the queue."""
    print(context.client.post("/v1/undo", {"force": force}).get("text", "undone"))


def redo(force: Force = False) -> None:
    """Do again what was undone."""
    print(context.client.post("/v1/redo", {"force": force}).get("text", "redone"))


def incidents(as_json: AsJson = False) -> None:
    """What went wrong, with the evidence and what was done."""
    found = context.client.get("/v1/incidents")
    if as_json:
        print_json(found)
        return
    items = found.get("incidents", [])
    for item in items:
        print(f"{item['at'][:19]}  {item.get('class', '')}: {printable(str(item.get('text', '')))}")
    if not items:
        print("no incidents")


def events(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 30,
    level: Annotated[str, typer.Option(help="info | warning | error")] = "",
    as_json: AsJson = False,
) -> None:
    """What happened, newest first."""
    query = urlencode({key: value for key, value in (("limit", limit), ("level", level)) if value})
    found = context.client.get(f"/v1/history?{query}")
    if as_json:
        print_json(found)
        return
    for event in found["events"]:
        print(f"{event['at'][:19]}  {event['level']:7}  {printable(event['text'])}")


def disk(as_json: AsJson = False) -> None:
    """What is free, how long it lasts, and what would go first, and why."""
    found = context.client.get("/v1/disk")
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if not isinstance(value, list) and (key, value) != ("place", ""):
            shown = columns.size(value) if key.endswith("bytes") else value
            print(f"{key:20} {shown if value is not None else '–'}")
    disks = found.get("filesystems", [])
    for one in disks if len(disks) > 1 else ():
        free, floor, save = (
            columns.size(one.get(key)) for key in ("free_bytes", "floor_bytes", "next_save_bytes")
        )
        needed = f"{free} free, {floor} have to stay, {save} for the next save"
        print(f"  {printable(str(one.get('place') or 'the workspace'), 60)}: {needed}")
    offers = found.get("would_go", [])
    if offers:
        all_of_it = columns.size(sum(offer.get("bytes") or 0 for offer in offers))
        print(f"\nwhen space is short, in this order, until there is enough ({all_of_it} in all):")
    for offer in offers:
        what, why = (printable(str(offer.get(key)), 100) for key in ("what", "why"))
        print(f"  {columns.size(offer.get('bytes')):>8}  {what}: {why}")
