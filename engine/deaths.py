"""Rows that end the process itself (a crash in native code, the OOM killer): counted, then found.

A step in which two processes ended is tried again outside the trainer (`hunt.py`), before the
third loads its model; what fails there by itself is left out from then on. So a job gets by within
its three attempts, whatever its rows do.

Invariant: what is known lies in the job's own directory, durably, before the next step runs; a row
in it never trains again, and no other row is skipped or doubled by it: every process leaves it out
from its first step on, and the manifest says so from the next commit on.

Limits: a step is blamed by where its process ended, so two kills from outside in one step cost a
hunt that finds nothing.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import resource
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.engine import step_mark
from trainer_tui.engine.control import Control
from trainer_tui.engine.step_mark import Place
from trainer_tui.safety import child, clock, durable, incidents
from trainer_tui.safety.heartbeat import HeartbeatWriter
from trainer_tui.safety.messages import Said, Train, TrainerSpec
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("trainer.deaths")
NOTE_NAME = "deaths.json"
DEATHS_OF_A_STEP = 2
HUNTER_ENTRY = "trainer_tui.engine.hunt"
END_S = 10.0


class Note(msgspec.Struct, frozen=True):
    """`deaths.json` of a job: how many processes in a row ended in one step of it, and the rows
    (line numbers) that did so by themselves."""

    plan: str = ""
    epoch: int = 0
    step_index: int = 0
    deaths: int = 0
    rows: list[int] = []

    def is_at(self, plan: str, epoch: int, step_index: int) -> bool:
        return (self.plan, self.epoch, self.step_index) == (plan, epoch, step_index)


class Request(msgspec.Struct, frozen=True):
    """What the hunting process is told."""

    workspace: str
    config: dict[str, Any]
    place: Place


class Answer(msgspec.Struct, frozen=True):
    """A trial more, or the end with what was found. `text`: why nothing was."""

    done: bool
    lines: list[int] = []
    text: str = ""


def read(folder: Path) -> Note:
    """What is known of a job in this directory; an empty note when nothing is."""
    try:
        return msgspec.json.decode((folder / NOTE_NAME).read_bytes(), type=Note)
    except FileNotFoundError:
        return Note()
    except (OSError, msgspec.MsgspecError) as problem:
        log.error("%s cannot be read: %s", folder / NOTE_NAME, problem)
        return Note()


def place_of(workspace: Workspace, train: Train) -> Place | None:
    """The step of this file that ended processes; None when there is none."""
    note = read(workspace.root / train.folder)
    if not note.plan:
        return None
    named = train.job_id, train.name, train.folder, train.file_sha256
    return Place(*named, note.plan, note.epoch, note.step_index)


def look_back(
    workspace: Workspace, spec: TrainerSpec, control: Control, heart: HeartbeatWriter
) -> None:
    """Count the end of the last process, and look for the rows when it is time to.

    Caller must hold the `.writer` lock and not have loaded the model yet. Comes back early when
    the trainer has to leave.
    """
    place = step_mark.take(workspace)
    if place is None:
        return
    folder = workspace.root / place.folder
    old = read(folder)
    here = old.is_at(place.plan, place.epoch, place.step_index)
    deaths = old.deaths + 1 if here else 1
    note = Note(place.plan, place.epoch, place.step_index, deaths, old.rows)
    if not _keep(folder, note) or deaths % DEATHS_OF_A_STEP:
        return
    text = f"{place.name}: the trainer ended twice in one step; its rows are tried one by one"
    control.say(Said("warning", "incident", text, {"kind": "deaths", "job": place.job_id}))
    log.warning("%s", text)
    found = _hunt(Request(spec.workspace, spec.config, place), workspace, control, heart)
    if not found.lines:
        log.warning("no row was found: %s", found.text)
        control.say(Said("warning", "incident", f"{place.name}: no row is to blame: {found.text}"))
        return
    rows = sorted({*old.rows, *found.lines})
    if _keep(folder, msgspec.structs.replace(note, deaths=0, rows=rows)):
        _tell(workspace, control, place, found.lines)


def _keep(folder: Path, note: Note) -> bool:
    """False when the job is not there any more, or the disk does not take it."""
    if not folder.is_dir():
        return False
    try:
        durable.replace(folder / NOTE_NAME, msgspec.json.encode(note))
    except OSError as problem:
        log.error("%s was not written: %s", folder / NOTE_NAME, problem)
        return False
    return True


def _hunt(
    request: Request, workspace: Workspace, control: Control, heart: HeartbeatWriter
) -> Answer:
    """Run the hunting process and wait for its answer; each trial is a beat."""
    ours, theirs = multiprocessing.Pipe()
    output = workspace.logs / "trainer.out"
    hunter = child.spawn(HUNTER_ENTRY, theirs, msgspec.json.encode(request), output, "hunter")
    theirs.close()
    try:
        while not control.wants_out:
            if not wait([ours], 0.2):
                continue
            answer = msgspec.json.decode(ours.recv_bytes(), type=Answer)
            heart.beat()
            if answer.done:
                return answer
        return Answer(True, text="the trainer had to leave")
    except EOFError:
        return Answer(True, text="the search itself ended")
    finally:
        _end(hunter, ours)


def _end(hunter: SpawnProcess, pipe: Connection) -> None:
    """It ends by itself when its pipe closes."""
    pipe.close()
    hunter.join(END_S)
    if hunter.exitcode is None:
        hunter.kill()
        hunter.join()


def _tell(workspace: Workspace, control: Control, place: Place, lines: list[int]) -> None:
    named = ", ".join(map(str, lines))
    text = f"{place.name}: line {named} ends the trainer's process and is left out"
    data: dict[str, Any] = {"kind": "poison_rows", "job": place.job_id, "rows": lines}
    control.say(Said("error", "incident", text, data))
    log.error("%s", text)
    keep_incident(workspace, text, place.job_id, lines, f"step-{place.epoch}-{place.step_index}")


def keep_incident(
    workspace: Workspace, text: str, job_id: int, lines: list[int], step: str, **more: object
) -> None:
    """The incident of rows that were left out. A failure is logged."""
    at = clock.now_iso()
    folder = workspace.incidents / f"{at[:19].replace(':', '')}-rows-{job_id}-{step}"
    document = {
        "at": at,
        "class": "data_error",
        "text": text,
        "suggestion": "look at these lines of the file; the rest of it trains",
        "done": "the rows were excluded",
        "job": job_id,
        "rows": lines,
        **more,
    }
    incidents.keep(folder, document)


def forbid_core_dumps() -> None:
    """In processes that are there to be ended by a row."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
