"""What must hold after any fault: each file in one place, rows trained once, checkpoints sound,
steps monotone, one of each process, the status file readable. Used by torture and by tests.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from trainer_tui.queue.job import parse_directory_name
from trainer_tui.safety import checkpoints, manifest, processes
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.workspace import QUEUE_FOLDERS, Workspace


def check(workspace: Workspace, dropped: dict[str, bytes]) -> None:
    """`dropped`: name -> content of every file that was put into the inbox.

    Raises:
        AssertionError: with the first thing that does not hold.
    """
    _each_file_is_in_one_place(workspace, dropped)
    checkpoints_are_sound(workspace)
    _ledger_is_sound(workspace)
    json.loads(workspace.status_file.read_bytes())


def nothing_is_left(workspace: Workspace) -> None:
    """No process of this workspace's daemons is left over. After all have ended."""
    found = workspace.root.stat()
    left = processes.tagged(f"{found.st_dev:x}-{found.st_ino:x}")
    assert not left, f"left over: {left}"


def _each_file_is_in_one_place(workspace: Workspace, dropped: dict[str, bytes]) -> None:
    wanted = {hashlib.sha256(data).hexdigest(): name for name, data in dropped.items()}
    places: Counter[str] = Counter()
    for folder in QUEUE_FOLDERS:
        for job in (workspace.queue / folder).iterdir():
            if parse_directory_name(job.name) is not None:
                places[hashlib.sha256((job / "data.jsonl").read_bytes()).hexdigest()] += 1
    for file in workspace.inbox.rglob("*.jsonl"):
        places[hashlib.sha256(file.read_bytes()).hexdigest()] += 1
    for digest, name in wanted.items():
        assert places[digest] == 1, f"{name} is in {places[digest]} places"


def checkpoints_are_sound(workspace: Workspace) -> None:
    steps = []
    for folder in checkpoints.list_folders(workspace.current_model):
        try:
            sealed = checkpoints.verify(folder)
        except Corrupt:
            if folder.exists():
                raise
            continue  # retention let it go while we looked
        steps.append(sealed.global_step)
        named = checkpoints.parse_name(folder.name)
        assert named is not None and named.global_step == sealed.global_step, folder
    assert steps == sorted(steps, reverse=True)


def _ledger_is_sound(workspace: Workspace) -> None:
    try:
        newest = checkpoints.newest_verified(workspace.current_model)
    except Corrupt as problem:
        raise AssertionError(str(problem)) from problem
    if newest is None:
        return
    entries = list(manifest.ledger_entries(workspace.ledger, newest.manifest.ledger))
    counted = Counter(entry.job_id for entry in entries)
    assert all(count == 1 for count in counted.values()), f"trained twice: {counted}"
    trained = sum(entry.steps for entry in entries)
    started = sum(
        cursor.epoch * cursor.steps + cursor.step_index for cursor in newest.manifest.cursors
    )
    if newest.manifest.lineage == 0:
        assert newest.manifest.global_step == trained + started, "steps and rows disagree"


def proc_count(workspace: Workspace, word: str) -> int:
    """Processes of this workspace whose command line holds `word`."""
    root = str(workspace.root).encode()
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            found += root in line and word.encode() in line
    return found
