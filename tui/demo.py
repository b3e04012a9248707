"""`trainer-tui demo`: a newcomer's first three minutes, on a tiny model and generated chats.

Makes a workspace, a base model and chats, starts the daemon, drops the files into the inbox, and
opens the screen. Without a terminal it prints progress lines, and at the end compares what base
and trained model answer to prompts that no file contains.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_tui.safety import durable
from trainer_tui.safety.errors import NoDaemon, Refused, TrainerTuiError
from trainer_tui.safety.text import printable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui import columns
from trainer_tui.tui.client import Client
from trainer_tui.tui.context import context, ensure_daemon, module_command
from trainer_tui.tui.workspace_setup import make_workspace

MARK = ".trainer-tui-demo"  # only a folder with this file is ever removed by a second demo
SEED = 7
ROWS = 1000
LATE_S = 20.0  # some files come later, so that one sees them flow
LIMIT_S = 900.0  # for so many rows; more rows have more time
SETTINGS: dict[str, Any] = {
    "model_name": "demo/tiny-qwen3",
    "tokens_per_step": 2048,
    "pack_tokens": 512,
    "max_length": 256,
    "epochs": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 20,
    "eval_steps": 20,
    "save_steps": 100,
    "min_save_interval_s": 20.0,
    "validation__rows": 100,
    "validation__slice_rows": 32,
    "versioning__after_every_file": False,
    "disk__min_free_gb": 0.5,
    "disk__min_free_share": 0.0,
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A generated file and the inbox folder it goes to."""

    path: Path
    priority: str


def run(folder: Path, *, headless: bool, rows: int = ROWS) -> int:
    """Make and run the demo. Returns the exit code: 0 when everything was learned."""
    headless = headless or not sys.stdout.isatty()
    root = folder.expanduser().absolute()
    space = Workspace(root)
    if not headless and space.config_file.exists() and Client(space.socket).alive():
        print(f"a demo runs in {root}: attaching")
    else:
        _clear(space)
        chats = _build(space, rows)
        base = _exact_match(space, root / "models" / "base") if headless else None
        ensure_daemon(space)
        if headless:
            return _follow(space, chats, base, LIMIT_S * max(1.0, rows / ROWS))
        threading.Thread(target=_feed, args=(space, chats), daemon=True).start()
    from trainer_tui.tui import app as screen

    context.explicit = root
    code = screen.run(space.root, socket=space.socket, read_only=False)
    print(f"  back to the demo: {sys.argv[0]} -w {folder}; its end: touch {folder}/.stop")
    return code


def _clear(space: Workspace) -> None:
    """Remove the last demo; refuses anything that is not one of ours."""
    if not space.root.exists():
        return
    if not (space.root / MARK).is_file():
        if any(space.root.iterdir()):
            raise Refused(f"{space.root} is not empty and no demo of ours", "demo --dir OTHER")
        return
    _end_daemon(space)
    shutil.rmtree(space.root)


def _build(space: Workspace, rows: int) -> list[Chat]:
    print(f"building a tiny model and chats in {space.root} …", flush=True)
    durable.make_directory(space.root, 0o755)
    (space.root / MARK).touch()
    make_workspace(space.root, **SETTINGS)
    folder = space.root / "chats"
    told = _child(
        "trainer_tui.data.toy_chats", str(folder), "--seed", str(SEED), "--rows", str(rows)
    )
    _child("trainer_tui.engine.toy_model", "build", str(space.root / "models" / "base"))
    chats = []
    for line in told.splitlines():
        priority, _, path = line.partition("\t")
        chats.append(Chat(Path(path), priority))
    return chats


def _child(module: str, *arguments: str) -> str:
    done = subprocess.run(
        module_command(module, *arguments), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TrainerTuiError(f"{module} failed: {last}", "trainer-tui doctor")
    return done.stdout


def _drop(space: Workspace, chat: Chat) -> None:
    """Put a copy into the inbox the way a careful tool does: write aside, then rename."""
    folder = space.inbox if chat.priority == "normal" else space.inbox / chat.priority
    aside = folder / f"{chat.path.name}.part"
    shutil.copyfile(chat.path, aside)
    aside.rename(folder / chat.path.name)


def _feed(space: Workspace, chats: list[Chat]) -> None:
    """The first file of each priority at once, the others a little later."""
    first = {chat.priority: chat for chat in reversed(chats)}
    for chat in first.values():
        _drop(space, chat)
    late = [chat for chat in chats if chat not in first.values()]
    for chat in late:
        time.sleep(LATE_S / max(1, len(late)))
        _drop(space, chat)


def _follow(
    space: Workspace, chats: list[Chat], base: dict[str, Any] | None, limit_s: float
) -> int:
    """Print progress until every file is trained; then the summary. Exit code."""
    client = Client(space.socket)
    feeder = threading.Thread(target=_feed, args=(space, chats), daemon=True)
    feeder.start()
    started, shown = time.monotonic(), ""
    while time.monotonic() - started < limit_s:
        time.sleep(0.5)
        try:
            status = client.get("/v1/status")
        except NoDaemon:
            ensure_daemon(space)  # somebody killed it: that is part of the show
            continue
        shown = _print_progress(status, shown)
        jobs = client.get("/v1/jobs?limit=1000")["jobs"]
        done = [job for job in jobs if job["state"] in ("completed", "failed")]
        if not feeder.is_alive() and len(done) >= len(chats):
            return _summary(space, client, done, base, time.monotonic() - started)
    print(f"not done after {limit_s:g} s; see {space.logs}", file=sys.stderr)
    _end_daemon(space)
    return 1


def _print_progress(status: dict[str, Any], shown: str) -> str:
    training, queue = status["training"], status["queue"]
    job = training.get("job") or {}
    line = (
        f"{training['state']:10} step {training.get('global_step') or 0:4d}"
        f"  loss {columns.figure(training.get('loss'), 3)}"
        f"  val {columns.figure(training.get('val_loss'), 3)}"
        f"  {columns.count(training.get('tokens_per_s')):>6} tok/s"
        f"  waiting {queue['waiting']}, done {queue['recently_completed']}"
        f"  {printable(job.get('name', ''))} {100 * (job.get('fraction') or 0):.0f} %"
    )
    key = f"{training['state']}{(training.get('global_step') or 0) // 10}{queue}"
    if key != shown:
        print(line, flush=True)
    return key


def _summary(
    space: Workspace,
    client: Client,
    done: list[dict[str, Any]],
    base: dict[str, Any] | None,
    seconds: float,
) -> int:
    version = client.post("/v1/versions", {"description": "end of the demo"})
    status = client.get("/v1/status")["training"]
    losses = client.get("/v1/metrics?series=loss,val_loss&points=1000")["series"]
    _end_daemon(space)
    path = space.versions / version["name"]
    after = _exact_match(space, path)
    failed = [job for job in done if job["state"] == "failed"]
    first, last = _ends(losses["loss"])
    val_first, val_last = _ends(losses["val_loss"])
    print("\nThe demo is done.")
    print(f"  files       {len(done) - len(failed)} trained, {len(failed)} failed")
    print(f"  steps       {status['global_step']}")
    print(f"  tokens      {status['tokens_seen']}")
    print(f"  loss        {first:.3f} -> {last:.3f}")
    print(f"  val loss    {val_first:.3f} -> {val_last:.3f}")
    print(f"  tokens/s    {status['tokens_seen'] / seconds:.0f} over {seconds:.0f} s, all included")
    print(f"  version     {path}")
    learned = last < first and val_last < val_first
    if base is not None:
        print(f"  exact match {base['rate']:.3f} (base) -> {after['rate']:.3f}")
        learned = learned and after["rate"] > base["rate"]
    if failed or not learned:
        print("it did not learn as it should have", file=sys.stderr)
        return 1
    return 0


def _ends(points: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean of the first and of the last tenth of a series: single steps are noisy."""
    values = [float(point["mean"]) for point in points]
    if not values:
        raise TrainerTuiError("no step was recorded", "trainer-tui logs")
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def _exact_match(space: Workspace, model: Path) -> dict[str, Any]:
    prompts = str(space.root / "chats" / "held_out.json")
    told = _child("trainer_tui.engine.toy_model", "answer", str(model), prompts)
    found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
    return found


def _end_daemon(space: Workspace) -> None:
    """Ask the demo's daemon to stop, as a service manager would, and wait for it."""
    client = Client(space.socket)
    try:
        pid = int(client.get("/v1/status")["daemon"]["pid"])
    except NoDaemon:
        return
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while client.alive():
            if time.monotonic() > deadline:
                raise TrainerTuiError(f"the daemon (pid {pid}) does not stop", "trainer-tui logs")
            time.sleep(0.1)
    finally:
        os.close(process)
