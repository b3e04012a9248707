"""A whole house for torture: the real watchdog, the real daemon, the real trainer, a tiny model.

`Guarded` is a `Harness` whose daemon the watchdog starts. Roles are processes: `watchdog`,
`daemon`, `trainer`, `writer`. `back_after` waits until every role is there once and a step was
done after a given moment, and says how long that took.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon_harness import SUPPORT, Harness, make_workspace, wait_for

from trainer_tui.safety import processes
from trainer_tui.safety.processes import ProcessId
from trainer_tui.safety.workspace import Workspace

ENGINE = "trainer_tui.engine.entry"
ROLES = ("watchdog", "daemon", "trainer", "writer")
BACK_S = 60.0
SETTINGS = """
max_length = 128
pack_tokens = 128
tokens_per_step = 128
learning_rate = 1e-4
warmup_steps = 2
eval_steps = 1000000
save_steps = 20
[validation]
rows = 0
holdout_rows = 0
holdout_share = 0.0
[supervision]
backoff_s = [0.2]
attempts = 50
[disk]
min_free_gb = 0.0
min_free_share = 0.000001
[retention]
emergency_backups = 50
"""
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


def tiny_base(folder: Path) -> Path:
    """Build the tiny model once."""
    if not folder.exists():
        build = [sys.executable, "-m", "trainer_tui.engine.toy_model", "build", str(folder)]
        subprocess.run([*build, "--size", "tiny"], check=True, capture_output=True)
    return folder


def real_workspace(root: Path, base: Path, settings: str = SETTINGS) -> Workspace:
    """A workspace with the tiny model in it, made for use."""
    workspace = make_workspace(root, settings)
    shutil.rmtree(workspace.models / "base")
    shutil.copytree(base, workspace.models / "base")
    workspace.prepare()
    return workspace


def seconds_of(stamp: str | None) -> float:
    """A status document's time as seconds since the epoch; 0 when there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


class Guarded(Harness):
    """`begin` starts the watchdog; `end` ends all and proves that nothing is left."""

    def __init__(self, workspace: Workspace, entry: str = ENGINE) -> None:
        super().__init__(workspace, entry)
        self.parent: subprocess.Popen[bytes] | None = None

    def begin(self) -> Guarded:
        command = [sys.executable, "-P", "-m", "trainer_tui.safety.watchdog"]
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": str(SUPPORT),
            "TRAINER_TUI_TRAINER_ENTRY": self.entry,
        }
        self.parent = subprocess.Popen(
            [*command, "--workspace", str(self.workspace.root)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.answers, BACK_S, "the daemon answers")
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", "/v1/ping", timeout_s=3.0).status == 200
        return False

    def ask(self) -> Any:
        """The training document, or None while nobody answers."""
        with contextlib.suppress(OSError, ValueError):
            answer = self.call("GET", "/v1/status", timeout_s=3.0)
            return answer.json["training"] if answer.status == 200 else None
        return None

    # --- roles -----------------------------------------------------------------------------------

    def roles(self) -> dict[str, list[ProcessId]]:
        """Every living process of this workspace, by what it is."""
        if self.parent is not None:
            self.parent.poll()
        found: dict[str, list[ProcessId]] = {role: [] for role in ROLES}
        root = str(self.workspace.root).encode()
        ours = {process.pid for process in self.tagged()}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                role = _role(words, root, int(entry.name) in ours)
                process = processes.identify(int(entry.name)) if role else None
                if role and process is not None:
                    found[role].append(process)
        return found

    def one(self, role: str) -> ProcessId:
        """The one process of a role; waits for it."""
        return wait_for(lambda: next(iter(self.roles()[role]), None), BACK_S, f"a {role}")

    def send(self, number: signal.Signals, *roles: str) -> list[ProcessId]:
        """Signal them, found first, then one right after the other. Returns who they were."""
        targets = [self.one(role) for role in roles]
        for process in targets:
            processes.send(process, number)
        return targets

    # --- waiting ---------------------------------------------------------------------------------

    def at_work(self, limit_s: float = BACK_S) -> Any:
        """A step was done and a checkpoint committed."""

        def there() -> Any:
            training = self.ask()
            trains = training and training["trainer_pid"] and training["global_step"]
            return training if trains and training["checkpoint"] else None

        return wait_for(there, limit_s, "steps and a checkpoint")

    def back_after(
        self, moment_s: float, limit_s: float = BACK_S, without: Collection[ProcessId] = ()
    ) -> float:
        """Seconds from `moment_s` (time.time()) until one process of each role is there, none of
        them of `without`, and a step was done since."""
        whole_since_s = 0.0

        def back() -> bool:
            nonlocal whole_since_s
            found = self.roles()
            whole = all(len(named) == 1 and named[0] not in without for named in found.values())
            if not whole:
                whole_since_s = 0.0
                return False
            whole_since_s = whole_since_s or time.time()
            training = self.ask()
            return training is not None and seconds_of(training["last_sample_at"]) > whole_since_s

        try:
            wait_for(back, limit_s, "steps again, one process of each role")
        except AssertionError as problem:
            raise AssertionError(
                f"{problem}\n{self.roles()}\n{self.ask()}\n{self.tail()}"
            ) from None
        return time.time() - moment_s

    def tail(self) -> str:
        """The ends of the logs."""
        texts = []
        for name in ("watchdog.log", "daemon.log", "trainer.log", "daemon.out", "trainer.out"):
            file = self.workspace.logs / name
            if file.exists():
                texts.append(f"--- {name}\n{file.read_text(errors='replace')[-1500:]}")
        return "\n".join(texts)

    def all_done(self, count: int, limit_s: float, *, resume: bool = False) -> None:
        """So many files are completed and committed. `resume`: a person answers "given up"."""

        def there() -> bool:
            with contextlib.suppress(OSError, ValueError, AssertionError):
                if resume and self.training()["state"] == "degraded":
                    self.post("/v1/training/resume", {}, timeout_s=60)
                return bool(self.get("/v1/jobs?state=completed")["total"] >= count)
            return False

        try:
            wait_for(there, limit_s, f"{count} files completed")
        except AssertionError as problem:
            raise AssertionError(f"{problem}\n{self.ask()}\n{self.tail()}") from None

    # --- the end ---------------------------------------------------------------------------------

    def end(self, limit_s: float = BACK_S) -> None:
        """End the daemon as asked, then the watchdog; then nothing may be left."""
        for role in ("watchdog", "daemon"):
            for process in self.roles()[role]:
                processes.send(process, signal.SIGCONT)
                processes.send(process, signal.SIGTERM)
        try:
            wait_for(lambda: not any(self.roles().values()), limit_s, "everything has ended")
            wait_for(lambda: not self.tagged(), 10, "nothing tagged is left")
        except AssertionError as problem:
            raise AssertionError(f"{problem}: {self.roles()}\n{self.tail()}") from None
        finally:
            self.sweep()

    def sweep(self) -> None:
        """SIGKILL to whatever is left, in an order that nobody starts another."""
        for role in ROLES:
            for process in self.roles()[role]:
                processes.send(process, signal.SIGKILL)
        for process in self.tagged():
            processes.send(process, signal.SIGKILL)
        if self.parent is not None:
            self.parent.wait(10)

    # --- what was learnt -------------------------------------------------------------------------

    def drop(self, name: str, data: bytes, folder: str = "") -> None:
        """As a careful program does it: under a hidden name, then renamed."""
        place = self.workspace.inbox / folder
        hidden = place / f".{name}.part"
        hidden.write_bytes(data)
        hidden.rename(place / name)


def _role(words: list[bytes], root: bytes, tagged: bool) -> str:
    """What a command line is; empty: none of ours."""
    if b"trainer_tui.safety.watchdog" in words and root in words:
        return "watchdog"
    if b"trainer_tui.daemon" in words and root in words:
        return "daemon"
    if tagged and b"trainer_tui.engine.writer" in words:
        return "writer"
    if tagged and any(b"spawn_main" in word for word in words):
        return "trainer"
    return ""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def settings_json(workspace: Workspace) -> Any:
    """The status file, as another program reads it."""
    return json.loads(workspace.status_file.read_bytes())
